//! Thumbnails (Client-Server API, "Thumbnails"), in a few sizes: made when somebody asks for one, and kept.

use bytes::Bytes;

use super::{Held, NotGiven, pixels, store, when_there_is_room};
use crate::{
    admission::{MEMORY_FOR_A_BYTE, Reservation},
    error::MatrixError,
    matrix::media::OCTET_STREAM,
    media::pixels::{Method, Refusal, Smaller, Wanted},
    platform::media::{ByteStream, MediaError, NewObject, StoredObject, Whole},
    router::Call,
    server::Server,
};

/// The sizes that are made: those that the specification names, and one for finer screens.
const SIZES: [(u32, u32, Method); 6] = [
    (32, 32, Method::Crop),
    (96, 96, Method::Crop),
    (320, 240, Method::Scale),
    (640, 480, Method::Scale),
    (800, 600, Method::Scale),
    (1_600, 1_200, Method::Scale),
];
/// What is taken for larger than any image: what does not move is given as it is, and of what must not move a still is made.
const BEYOND: (u32, u32, Method) = (u32::MAX, u32::MAX, Method::Scale);
/// The largest file that is read for a thumbnail.
const MAX_FILE: u64 = 12 * 1024 * 1024;
/// What a request for one may hold in memory beside the file, while it is decoded.
const MAX_PIXELS: u64 = pixels::MAX_DECODING + pixels::MAX_MADE;
/// For so long at most a request waits for room, and how long between two looks, in milliseconds.
const WAIT_MS: u32 = 10_000;
const PAUSE_MS: u32 = 100;

/// What is shown as a thumbnail.
pub enum Thumbnail {
    /// A smaller image, and what tells it from others.
    Smaller(StoredObject, String),
    /// The file itself, which is an image of this type, and small enough.
    AsItIs(&'static str),
}

/// What a request asks for.
///
/// # Errors
/// 400 where the width or height is missing or none, the method is unknown, or `animated` is neither `true` nor `false`.
pub fn wanted(call: &Call) -> Result<Wanted, MatrixError> {
    let number = |name: &str| {
        let given = call.query(name).ok_or_else(|| MatrixError::missing_param(format!("`{name}` is missing.")))?;
        let number = given.parse().ok().filter(|number: &u32| *number > 0);
        number.ok_or_else(|| MatrixError::invalid_param(format!("`{name}` must be a number above 0.")))
    };
    let method = match call.query("method").as_deref() {
        Some("crop") => Method::Crop,
        None | Some("scale") => Method::Scale,
        Some(_) => return Err(MatrixError::invalid_param("`method` must be `crop` or `scale`.")),
    };
    let may_move = match call.query("animated").as_deref() {
        Some("true") => true,
        None | Some("false") => false,
        Some(_) => return Err(MatrixError::invalid_param("`animated` must be `true` or `false`.")),
    };
    Ok(Wanted { width: number("width")?, height: number("height")?, method, may_move })
}

/// A thumbnail of a file, made and kept where there is none of its size yet.
///
/// # Errors
/// Also for what is no image.
pub async fn thumbnail(server: &Server, held: &Held, wanted: Wanted) -> Result<Thumbnail, NotGiven> {
    let bucket = store(server)?;
    let size = nearest(wanted);
    let key = key(&held.key, size);
    let version = format!("{}-{}", held.version, name(size));
    // Beyond all sizes nothing is made of what may move.
    let is_kept = !wanted.may_move || !is_beyond(size);
    if is_kept && let Some(kept) = bucket.get(key.clone(), None).await? {
        if kept.size == 0 {
            return Err(no_image().into());
        }
        return Ok(Thumbnail::Smaller(kept, version));
    }
    if held.size() > MAX_FILE {
        return Err(NotGiven::TooLarge);
    }
    let room = Room::of(server, held.size()).await?;
    let mut object = bucket.get(held.key.clone(), None).await?.ok_or(NotGiven::Gone)?;
    let file = whole(&mut *object.stream, object.size.min(held.size())).await?;
    room.for_pixels(server, file.len()).await?;
    let made = pixels::smaller(&file, size);
    drop(file);
    room.is_left_for(&made);
    match made {
        Ok(Smaller::AsItIs(kind)) => Ok(Thumbnail::AsItIs(kind)),
        Ok(Smaller::Made { bytes, content_type }) => {
            let bytes = Bytes::from(bytes);
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            if is_kept {
                bucket.put(key, new(bytes.clone(), content_type)).await?;
            }
            let stream = Box::new(Whole::new(bytes));
            Ok(Thumbnail::Smaller(
                StoredObject { stream, size: length, content_type: content_type.to_owned() },
                version,
            ))
        }
        Err(Refusal::TooLarge) => Err(NotGiven::TooLarge),
        Err(Refusal::NoImage) => {
            // What breaks off at its end is as dear as what is whole: it is not decoded again.
            if is_kept {
                bucket.put(key, new(Bytes::new(), OCTET_STREAM)).await?;
            }
            Err(no_image().into())
        }
    }
}

/// What a request has of what may be in work.
struct Room(Reservation);

impl Room {
    /// Room for a file. Where it is given there would be room for the pixels too, so that nobody who has read a file waits for others
    /// who have, but only while one is decoded are they there, and then nothing else runs.
    async fn of(server: &Server, size: u64) -> Result<Self, MatrixError> {
        let file = usize::try_from(size).unwrap_or(usize::MAX);
        let in_work = in_decoding(file).div_ceil(MEMORY_FOR_A_BYTE);
        let reservation = waiting(server, |now| server.admission.reserve(in_work, now)).await?;
        reservation.shrink(file);
        Ok(Self(reservation))
    }

    /// Makes room for the pixels, now that the file of so many bytes is there.
    async fn for_pixels(&self, server: &Server, file: usize) -> Result<(), MatrixError> {
        waiting(server, |now| self.0.hold(in_decoding(file), now).then_some(())).await
    }

    /// Lets go of all but what was made.
    fn is_left_for(&self, made: &Result<Smaller, Refusal>) {
        self.0.shrink(match made {
            Ok(Smaller::Made { bytes, .. }) => bytes.len(),
            Ok(Smaller::AsItIs(_)) | Err(_) => 0,
        });
    }
}

fn in_decoding(file: usize) -> usize {
    usize::try_from(MAX_PIXELS).unwrap_or(usize::MAX).saturating_add(file)
}

/// What `take` gives as soon as there is room for it.
async fn waiting<T>(server: &Server, take: impl FnMut(i64) -> Option<T>) -> Result<T, MatrixError> {
    let taken = when_there_is_room(server.platform.clock.as_ref(), WAIT_MS, PAUSE_MS, take).await;
    taken.ok_or_else(MatrixError::too_busy)
}

/// A file of known length, which is then in memory no more than once.
async fn whole(stream: &mut dyn ByteStream, length: u64) -> Result<Vec<u8>, MediaError> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let mut file = Vec::with_capacity(length);
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        if file.len() + piece.len() > length {
            return Err(MediaError::TooLong);
        }
        file.extend_from_slice(&piece);
    }
    Ok(file)
}

fn new(bytes: Bytes, content_type: &str) -> NewObject {
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let stream = Box::new(Whole::new(bytes));
    let (content_type, sender) = (content_type.to_owned(), String::new());
    NewObject { stream, length: Some(length), limit: length, content_type, sender }
}

fn no_image() -> MatrixError {
    const MESSAGE: &str = "Thumbnails are not available for this type of content.";
    MatrixError::new(http::StatusCode::BAD_REQUEST, "M_UNKNOWN", MESSAGE)
}

/// The keys under which thumbnails of the file with this key may be.
pub fn keys(of: &str) -> impl Iterator<Item = String> + '_ {
    let sizes = SIZES.into_iter().chain([BEYOND]);
    sizes.map(move |(width, height, method)| key(of, Wanted { width, height, method, may_move: false }))
}

fn is_beyond(size: Wanted) -> bool {
    (size.width, size.height, size.method) == BEYOND
}

fn key(of: &str, size: Wanted) -> String {
    format!("thumbnail/{of}/{}", name(size))
}

fn name(size: Wanted) -> String {
    if is_beyond(size) {
        return "still".to_owned();
    }
    let method = if size.method == Method::Crop { "crop" } else { "scale" };
    format!("{}x{}-{method}", size.width, size.height)
}

/// The smallest size that is large enough, of the same method where there is one.
fn nearest(wanted: Wanted) -> Wanted {
    let fits = |(width, height, _): &(u32, u32, Method)| *width >= wanted.width && *height >= wanted.height;
    let same = SIZES.into_iter().filter(fits).find(|(_, _, method)| *method == wanted.method);
    let any = same.or_else(|| SIZES.into_iter().filter(fits).find(|(_, _, method)| *method == Method::Scale));
    let (width, height, method) = any.unwrap_or(BEYOND);
    Wanted { width, height, method, may_move: wanted.may_move }
}
