//! Reading the runtime's byte streams, never more than a limit of them.

use worker::{
    js_sys::{Reflect, Uint8Array},
    wasm_bindgen::{JsCast, JsValue},
    wasm_bindgen_futures::JsFuture,
    web_sys::{ReadableStream, ReadableStreamDefaultReader},
};

/// Why a stream was not read to its end.
pub(super) enum ReadError {
    /// There is more than the limit.
    TooLong,
    /// The sender stopped in the middle; what the runtime says about it.
    Broken(String),
}

/// What becomes of the part of a stream that is beyond the limit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    /// It is not read; the sender is cut off.
    Cancelled,
    /// It is read and thrown away, so that the sender lives to read the answer.
    Discarded,
}

/// All that `stream` holds, at most `limit` bytes.
pub(super) async fn read_all(stream: &ReadableStream, limit: usize, excess: Excess) -> Result<Vec<u8>, ReadError> {
    let reader: ReadableStreamDefaultReader = stream.get_reader().unchecked_into();
    let mut bytes = Vec::new();
    let mut too_long = false;
    loop {
        let result = JsFuture::from(reader.read()).await.map_err(|error| ReadError::Broken(describe(&error)))?;
        let done = Reflect::get(&result, &"done".into()).is_ok_and(|done| done.is_truthy());
        if done {
            return if too_long { Err(ReadError::TooLong) } else { Ok(bytes) };
        }
        let chunk = Reflect::get(&result, &"value".into())
            .ok()
            .and_then(|value| value.dyn_into::<Uint8Array>().ok())
            .ok_or_else(|| ReadError::Broken("the stream does not consist of bytes".to_owned()))?;
        let start = bytes.len();
        let end = start + chunk.length() as usize;
        if too_long || end > limit {
            if excess == Excess::Cancelled {
                let _ = JsFuture::from(reader.cancel()).await;
                return Err(ReadError::TooLong);
            }
            too_long = true;
            bytes = Vec::new();
            continue;
        }
        if end > bytes.capacity() {
            // Never more than the limit: while it grows it is in two places.
            bytes.reserve_exact((2 * bytes.capacity()).clamp(end, limit) - start);
        }
        bytes.resize(end, 0);
        chunk.copy_to(&mut bytes[start..]);
    }
}

/// What a thrown JavaScript value says.
pub(super) fn describe(error: &JsValue) -> String {
    match error.dyn_ref::<worker::js_sys::Error>() {
        Some(error) => String::from(error.message()),
        None => error.as_string().unwrap_or_else(|| "unknown error".to_owned()),
    }
}
