//! Answers with media (Client-Server API, "Content repository" and its "Security considerations"): what browsers are told
//! so that nothing in them runs, parts of files, and what has not changed.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::{
    Held, NotGiven,
    pixels::Wanted,
    store,
    thumbnails::{self, Thumbnail},
};
use crate::{
    matrix::media::{self, OCTET_STREAM},
    platform::media::{ByteRange, StoredObject},
    router::{Answer, Body, StreamedBody},
    server::Server,
    store::media::MediaRow,
};

/// What comes with all media ("Content repository"). A browser may keep them to itself: whoever shares it needs a token of their own.
const GUARDS: [(HeaderName, HeaderValue); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; \
             style-src 'unsafe-inline'; object-src 'self';",
        ),
    ),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("cross-origin")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable")),
    (header::ACCEPT_RANGES, HeaderValue::from_static("bytes")),
];

/// What of a file is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    Range(ByteRange),
    /// Nothing that it has.
    Outside,
}

/// A file as a client asks for it with these headers, called `filename` instead where that is given.
///
/// # Errors
/// Also where the store fails.
pub async fn answer(
    server: &Server,
    held: &Held,
    filename: Option<&str>,
    asked: &HeaderMap,
) -> Result<Answer, NotGiven> {
    let etag = format!("\"{}\"", held.version);
    let filename = filename.or(held.row.filename.as_deref());
    if is_unchanged(asked, &etag) {
        return Ok(guarded(Response::new(Body::Whole(Default::default())), StatusCode::NOT_MODIFIED, &etag));
    }
    let part = part(asked, &etag, held.size());
    let range = match part {
        Part::Whole => None,
        Part::Range(range) => Some(range),
        Part::Outside => {
            let mut response =
                guarded(Response::new(Body::Whole(Default::default())), StatusCode::RANGE_NOT_SATISFIABLE, &etag);
            set(&mut response, header::CONTENT_RANGE, &format!("bytes */{}", held.size()));
            return Ok(response);
        }
    };
    let object = store(server)?.get(held.key.clone(), range).await?.ok_or(NotGiven::Gone)?;
    let (status, length) =
        range.map_or((StatusCode::OK, object.size), |range| (StatusCode::PARTIAL_CONTENT, range.length));
    let nothing = Default::default;
    let body = StreamedBody { before: nothing(), stream: object.stream, length, after: nothing() };
    let mut response = guarded(Response::new(Body::Streamed(body)), status, &etag);
    if let Some(ByteRange { offset, length }) = range {
        let range = format!("bytes {offset}-{}/{}", offset + length - 1, object.size);
        set(&mut response, header::CONTENT_RANGE, &range);
    }
    describe(&mut response, &held.row.content_type, filename);
    Ok(response)
}

/// A thumbnail of a file, made where there is none.
///
/// # Errors
/// As [`thumbnails::thumbnail`].
pub async fn thumbnail(server: &Server, held: &Held, wanted: Wanted, asked: &HeaderMap) -> Result<Answer, NotGiven> {
    let (object, version) = match thumbnails::thumbnail(server, held, wanted).await? {
        Thumbnail::Smaller(object, version) => (object, version),
        Thumbnail::AsItIs(kind) => return answer(server, &of_kind(held, kind), None, asked).await,
    };
    let etag = format!("\"{version}\"");
    if is_unchanged(asked, &etag) {
        return Ok(guarded(Response::new(Body::Whole(Default::default())), StatusCode::NOT_MODIFIED, &etag));
    }
    let filename = filename_of_thumbnail(&object.content_type);
    let content_type = object.content_type.clone();
    let mut response = guarded(Response::new(Body::Streamed(body(object))), StatusCode::OK, &etag);
    response.headers_mut().remove(header::ACCEPT_RANGES);
    describe(&mut response, &content_type, Some(filename));
    Ok(response)
}

/// A thumbnail as other servers are sent it.
///
/// # Errors
/// As [`thumbnails::thumbnail`].
pub async fn thumbnail_part(server: &Server, held: &Held, wanted: Wanted) -> Result<(String, StreamedBody), NotGiven> {
    match thumbnails::thumbnail(server, held, wanted).await? {
        Thumbnail::Smaller(object, _) => {
            let filename = filename_of_thumbnail(&object.content_type);
            Ok((part_head(&object.content_type, Some(filename)), body(object)))
        }
        Thumbnail::AsItIs(kind) => part_of_multipart(server, &of_kind(held, kind)).await,
    }
}

/// A file as what it really is, which a browser may show where it is.
fn of_kind(held: &Held, kind: &str) -> Held {
    Held { row: MediaRow { content_type: kind.to_owned(), ..held.row.clone() }, ..held.clone() }
}

fn filename_of_thumbnail(content_type: &str) -> &'static str {
    if content_type == "image/png" { "thumbnail.png" } else { "thumbnail.jpg" }
}

fn body(object: StoredObject) -> StreamedBody {
    let nothing = Default::default;
    StreamedBody { before: nothing(), stream: object.stream, length: object.size, after: nothing() }
}

fn part_head(content_type: &str, filename: Option<&str>) -> String {
    let content_type = media::content_type(Some(content_type));
    let disposition = media::disposition(content_type, filename);
    format!("Content-Type: {content_type}\r\nContent-Disposition: {disposition}\r\n\r\n")
}

/// Says of what type the answer is, and what to do with it.
pub fn describe(response: &mut Answer, content_type: &str, filename: Option<&str>) {
    set(response, header::CONTENT_TYPE, media::content_type(Some(content_type)));
    set(response, header::CONTENT_DISPOSITION, &media::disposition(content_type, filename));
}

/// An answer with what all media come with.
pub fn guarded(mut response: Answer, status: StatusCode, etag: &str) -> Answer {
    *response.status_mut() = status;
    response.headers_mut().extend(GUARDS);
    set(&mut response, header::ETAG, etag);
    response
}

/// A file as other servers are sent it: the head of its part, and its bytes.
///
/// # Errors
/// Also where the store fails.
pub async fn part_of_multipart(server: &Server, held: &Held) -> Result<(String, StreamedBody), NotGiven> {
    let object = store(server)?.get(held.key.clone(), None).await?.ok_or(NotGiven::Gone)?;
    Ok((part_head(&held.row.content_type, held.row.filename.as_deref()), body(object)))
}

fn set(response: &mut Answer, name: HeaderName, value: &str) {
    let value = HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static(OCTET_STREAM));
    response.headers_mut().insert(name, value);
}

/// `If-None-Match` (RFC 9110, section 13.1.2).
fn is_unchanged(asked: &HeaderMap, etag: &str) -> bool {
    let values = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// `Range` and `If-Range` (RFC 9110, sections 14.2 and 13.1.5): one range of bytes; what is none, or several, is the whole.
fn part(asked: &HeaderMap, etag: &str, size: u64) -> Part {
    let text = |name| asked.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let Some(spec) = text(header::RANGE).and_then(|range| range.trim().strip_prefix("bytes=")) else {
        return Part::Whole;
    };
    if text(header::IF_RANGE).is_some_and(|tag| tag != etag) {
        return Part::Whole;
    }
    let Some((first, last)) = spec.split_once('-') else { return Part::Whole };
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let (offset, end) = match (number(first.trim()), number(last.trim())) {
        (Some(first), Some(last)) if first <= last => (first, last.min(size.saturating_sub(1))),
        (Some(first), None) if last.trim().is_empty() => (first, size.saturating_sub(1)),
        (None, Some(count)) if first.trim().is_empty() => match count {
            0 => return Part::Outside,
            count => (size.saturating_sub(count), size.saturating_sub(1)),
        },
        _ => return Part::Whole,
    };
    if offset >= size { Part::Outside } else { Part::Range(ByteRange { offset, length: end - offset + 1 }) }
}
