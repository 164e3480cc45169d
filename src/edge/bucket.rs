//! [`MediaStore`] over R2. Streams that the runtime made go from one of its hands into the other, and no byte of them through
//! this program's memory.

use std::rc::Rc;

use futures_util::future::join;
use worker::{
    Env,
    js_sys::{Array, Object, Promise, Reflect, Uint8Array},
    wasm_bindgen::{self, JsCast, JsValue, prelude::wasm_bindgen},
    wasm_bindgen_futures::JsFuture,
    web_sys::ReadableStream,
};

use super::{
    runtime::WorkerClock,
    stream::{FixedLength, RuntimeStream, describe},
};
use crate::{
    admission::Admission,
    matrix::media::OCTET_STREAM,
    media::parts::{PART_BYTES, Parts},
    platform::{
        LocalBoxFuture,
        media::{ByteRange, ByteStream, MediaError, MediaStore, NewObject, StoredObject, Whole},
    },
};

// The methods of the binding that are used.
#[wasm_bindgen]
extern "C" {
    type R2Bucket;
    #[wasm_bindgen(method, structural, catch)]
    fn put(this: &R2Bucket, key: &str, value: &JsValue, options: &Object) -> Result<Promise, JsValue>;
    #[wasm_bindgen(method, structural, catch)]
    fn get(this: &R2Bucket, key: &str, options: &Object) -> Result<Promise, JsValue>;
    #[wasm_bindgen(method, structural, catch)]
    fn delete(this: &R2Bucket, keys: &Array) -> Result<Promise, JsValue>;
    #[wasm_bindgen(method, structural, catch, js_name = createMultipartUpload)]
    fn create_multipart_upload(this: &R2Bucket, key: &str, options: &Object) -> Result<Promise, JsValue>;

    type R2Upload;
    #[wasm_bindgen(method, structural, catch, js_name = uploadPart)]
    fn upload_part(this: &R2Upload, number: u32, value: &JsValue) -> Result<Promise, JsValue>;
    #[wasm_bindgen(method, structural, catch)]
    fn complete(this: &R2Upload, parts: &Array) -> Result<Promise, JsValue>;
    #[wasm_bindgen(method, structural, catch)]
    fn abort(this: &R2Upload) -> Result<Promise, JsValue>;

    type R2Object;
    #[wasm_bindgen(method, structural, getter)]
    fn size(this: &R2Object) -> f64;
    #[wasm_bindgen(method, structural, getter)]
    fn body(this: &R2Object) -> Option<ReadableStream>;
    #[wasm_bindgen(method, structural, getter, js_name = httpMetadata)]
    fn http_metadata(this: &R2Object) -> JsValue;
}

/// The bucket that is bound as `MEDIA`, where one is. What must be in memory of media counts with what else is in work.
pub(super) fn media(env: &Env, admission: Rc<Admission>) -> Option<Rc<dyn MediaStore>> {
    let bucket = Reflect::get(env, &"MEDIA".into()).ok().filter(JsValue::is_object)?;
    Some(Rc::new(Bucket { bucket: bucket.unchecked_into(), admission }))
}

struct Bucket {
    bucket: R2Bucket,
    admission: Rc<Admission>,
}

impl Bucket {
    async fn keep(&self, key: &str, object: NewObject) -> Result<u64, MediaError> {
        let NewObject { stream, length, limit, content_type, sender } = object;
        let options = options(&content_type);
        match length {
            Some(length) if length > limit => Err(MediaError::TooLong),
            Some(length) if stream.as_any().is::<RuntimeStream>() => {
                match stream.into_any().downcast::<RuntimeStream>() {
                    Ok(stream) => self.pass_on(key, *stream, length, &options).await,
                    Err(_) => Err(MediaError::Broken),
                }
            }
            Some(length) if stream.as_any().is::<Whole>() => match stream.into_any().downcast::<Whole>() {
                Ok(whole) => {
                    let bytes = whole.into_bytes();
                    if bytes.len() as u64 != length {
                        return Err(MediaError::Broken);
                    }
                    self.put_whole(key, bytes, &options).await
                }
                Err(_) => Err(MediaError::Broken),
            },
            Some(length) => match self.in_parts(key, stream, length, &sender, &options).await {
                Ok(size) if size == length => Ok(size),
                Ok(_) => {
                    self.delete(vec![key.to_owned()]).await?;
                    Err(MediaError::Broken)
                }
                Err(error) => Err(error),
            },
            None => self.in_parts(key, stream, limit, &sender, &options).await,
        }
    }

    /// Lets the runtime carry a stream of known length into the bucket.
    async fn pass_on(
        &self,
        key: &str,
        stream: RuntimeStream,
        length: u64,
        options: &Object,
    ) -> Result<u64, MediaError> {
        let fixed = FixedLength::new(length).map_err(|error| failed(&error))?;
        let putting = self.bucket.put(key, &fixed.readable(), options).map_err(|error| failed(&error))?;
        let piping = stream.pipe_to(&fixed.writable(), true).map_err(|_| MediaError::Broken)?;
        match join(JsFuture::from(putting), JsFuture::from(piping)).await {
            // It ended early, or had more.
            (_, Err(_)) => Err(MediaError::Broken),
            (Err(error), Ok(_)) => Err(failed(&error)),
            (Ok(_), Ok(_)) => Ok(length),
        }
    }

    /// Keeps what is in memory already.
    async fn put_whole(&self, key: &str, bytes: impl AsRef<[u8]>, options: &Object) -> Result<u64, MediaError> {
        let size = bytes.as_ref().len() as u64;
        let copy = Uint8Array::from(bytes.as_ref());
        // It need not be in memory twice for as long as it is on its way.
        drop(bytes);
        let putting = self.bucket.put(key, &copy, options).map_err(|error| failed(&error))?;
        drop(copy);
        JsFuture::from(putting).await.map_err(|error| failed(&error))?;
        Ok(size)
    }

    /// Reads a stream of unknown length, a part at a time.
    async fn in_parts(
        &self,
        key: &str,
        stream: Box<dyn ByteStream>,
        limit: u64,
        sender: &str,
        options: &Object,
    ) -> Result<u64, MediaError> {
        let mut parts = Parts::new(stream, limit, sender, Rc::clone(&self.admission), Rc::new(WorkerClock));
        let first = parts.next().await?.unwrap_or_default();
        if first.len() < PART_BYTES {
            return self.put_whole(key, first, options).await;
        }
        let created = self.bucket.create_multipart_upload(key, options).map_err(|error| failed(&error))?;
        let upload: R2Upload = JsFuture::from(created).await.map_err(|error| failed(&error))?.unchecked_into();
        let outcome = async {
            let sent = Array::new();
            let mut size = 0;
            let mut next = Some(first);
            while let Some(part) = next {
                size += part.len() as u64;
                let copy = Uint8Array::from(&part[..]);
                drop(part);
                let sending = upload.upload_part(sent.length() + 1, &copy).map_err(|error| failed(&error))?;
                drop(copy);
                sent.push(&JsFuture::from(sending).await.map_err(|error| failed(&error))?);
                next = parts.next().await?;
            }
            let done = upload.complete(&sent).map_err(|error| failed(&error))?;
            JsFuture::from(done).await.map_err(|error| failed(&error))?;
            Ok(size)
        };
        let outcome = outcome.await;
        if outcome.is_err()
            && let Ok(aborted) = upload.abort()
        {
            // What cannot be aborted now R2 itself forgets after a week.
            let _ = JsFuture::from(aborted).await;
        }
        outcome
    }
}

impl MediaStore for Bucket {
    fn put(&self, key: String, object: NewObject) -> LocalBoxFuture<'_, Result<u64, MediaError>> {
        Box::pin(async move { self.keep(&key, object).await })
    }

    fn get(
        &self,
        key: String,
        range: Option<ByteRange>,
    ) -> LocalBoxFuture<'_, Result<Option<StoredObject>, MediaError>> {
        Box::pin(async move {
            let options = Object::new();
            if let Some(ByteRange { offset, length }) = range {
                let range = object([("offset", offset as f64), ("length", length as f64)].map(|(k, v)| (k, v.into())));
                set(&options, "range", &range);
            }
            let getting = self.bucket.get(&key, &options).map_err(|error| failed(&error))?;
            let got = JsFuture::from(getting).await.map_err(|error| failed(&error))?;
            if !got.is_object() {
                return Ok(None);
            }
            let got: R2Object = got.unchecked_into();
            let Some(body) = got.body() else { return Ok(None) };
            let content_type = Reflect::get(&got.http_metadata(), &"contentType".into()).ok();
            let content_type = content_type.and_then(|value| value.as_string());
            Ok(Some(StoredObject {
                stream: Box::new(RuntimeStream::new(body)),
                size: got.size() as u64,
                content_type: content_type.unwrap_or_else(|| OCTET_STREAM.to_owned()),
            }))
        })
    }

    fn delete(&self, keys: Vec<String>) -> LocalBoxFuture<'_, Result<(), MediaError>> {
        Box::pin(async move {
            let keys: Array = keys.iter().map(|key| JsValue::from_str(key)).collect();
            let deleting = self.bucket.delete(&keys).map_err(|error| failed(&error))?;
            JsFuture::from(deleting).await.map(drop).map_err(|error| failed(&error))
        })
    }
}

fn options(content_type: &str) -> Object {
    object([("httpMetadata", object([("contentType", content_type.into())]).into())])
}

fn object<const N: usize>(members: [(&str, JsValue); N]) -> Object {
    let object = Object::new();
    for (name, value) in members {
        set(&object, name, &value);
    }
    object
}

/// Setting a member of a plain object cannot fail.
fn set(object: &Object, name: &str, value: &JsValue) {
    let _ = Reflect::set(object, &name.into(), value);
}

fn failed(error: &JsValue) -> MediaError {
    MediaError::Unavailable(describe(error))
}
