//! The runtime's byte streams: read, never more than a limit of them, or passed on unread.

use std::any::Any;

use bytes::Bytes;
use worker::{
    js_sys::{Promise, Reflect, Uint8Array},
    wasm_bindgen::{self, JsCast, JsValue, prelude::wasm_bindgen},
    wasm_bindgen_futures::JsFuture,
    web_sys::{ReadableStream, ReadableStreamDefaultReader, WritableStream},
};

use crate::platform::{BodyError, LocalBoxFuture, media::ByteStream};

#[wasm_bindgen]
extern "C" {
    type Pipe;
    #[wasm_bindgen(method, structural, catch, js_name = pipeTo)]
    fn pipe_to(this: &Pipe, to: &JsValue, options: &JsValue) -> Result<Promise, JsValue>;

    /// A pair of streams through which so many bytes go, no more and no fewer: what comes out has a length that the runtime
    /// knows.
    #[wasm_bindgen(js_name = FixedLengthStream)]
    type FixedLengthStream;
    #[wasm_bindgen(constructor, catch, js_class = FixedLengthStream)]
    fn new(length: f64) -> Result<FixedLengthStream, JsValue>;
    #[wasm_bindgen(method, structural, getter)]
    fn readable(this: &FixedLengthStream) -> ReadableStream;
    #[wasm_bindgen(method, structural, getter)]
    fn writable(this: &FixedLengthStream) -> WritableStream;
}

/// See [`FixedLengthStream`].
pub(super) struct FixedLength(FixedLengthStream);

impl FixedLength {
    /// For so many bytes.
    pub(super) fn new(length: u64) -> Result<Self, JsValue> {
        FixedLengthStream::new(length as f64).map(Self)
    }

    /// Where they come out.
    pub(super) fn readable(&self) -> ReadableStream {
        self.0.readable()
    }

    /// Where they go in.
    pub(super) fn writable(&self) -> WritableStream {
        self.0.writable()
    }
}

/// A stream that the runtime made, which it can pass on itself.
pub(super) struct RuntimeStream {
    stream: ReadableStream,
    reader: Option<ReadableStreamDefaultReader>,
    /// What must live as long as the stream does.
    _guard: Option<Box<dyn Any>>,
}

impl RuntimeStream {
    /// Nobody else may read it.
    pub(super) fn new(stream: ReadableStream) -> Self {
        Self { stream, reader: None, _guard: None }
    }

    /// The same; `guard` is dropped with it.
    pub(super) fn guarded(stream: ReadableStream, guard: impl Any) -> Self {
        Self { stream, reader: None, _guard: Some(Box::new(guard)) }
    }

    /// Lets the runtime carry all of it into `to`, which is closed then if `closes` says so.
    pub(super) fn pipe_to(&self, to: &WritableStream, closes: bool) -> Result<Promise, JsValue> {
        let options = worker::js_sys::Object::new();
        Reflect::set(&options, &"preventClose".into(), &(!closes).into())?;
        self.stream.unchecked_ref::<Pipe>().pipe_to(to, &options)
    }
}

impl ByteStream for RuntimeStream {
    fn next(&mut self) -> LocalBoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        let stream = &self.stream;
        let reader = self.reader.get_or_insert_with(|| stream.get_reader().unchecked_into());
        Box::pin(async move {
            match chunk(reader).await {
                Ok(None) => None,
                Ok(Some(chunk)) => Some(Ok(chunk.to_vec().into())),
                Err(_) => Some(Err(BodyError::Broken)),
            }
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

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
        let Some(chunk) = chunk(&reader).await.map_err(ReadError::Broken)? else {
            return if too_long { Err(ReadError::TooLong) } else { Ok(bytes) };
        };
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

/// The next chunk; `None` at the end. The error says what the runtime does.
async fn chunk(reader: &ReadableStreamDefaultReader) -> Result<Option<Uint8Array>, String> {
    let result = JsFuture::from(reader.read()).await.map_err(|error| describe(&error))?;
    if Reflect::get(&result, &"done".into()).is_ok_and(|done| done.is_truthy()) {
        return Ok(None);
    }
    let value = Reflect::get(&result, &"value".into()).ok().and_then(|value| value.dyn_into::<Uint8Array>().ok());
    value.map(Some).ok_or_else(|| "the stream does not consist of bytes".to_owned())
}

/// What a thrown JavaScript value says.
pub(super) fn describe(error: &JsValue) -> String {
    match error.dyn_ref::<worker::js_sys::Error>() {
        Some(error) => String::from(error.message()),
        None => error.as_string().unwrap_or_else(|| "unknown error".to_owned()),
    }
}
