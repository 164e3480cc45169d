//! Where servers of tests keep media: in memory, counting how much of it was ever in one piece.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future,
    rc::Rc,
};

use bytes::Bytes;
use verge::platform::{
    BodyError, LocalBoxFuture, UnreadBody,
    media::{ByteRange, ByteStream, MediaError, MediaStore, NewObject, StoredObject},
};

use super::network::yield_now;

/// The pieces in which files come.
pub const PIECE: usize = 10_000;

/// The objects of one server. Cheap to clone.
#[derive(Clone, Default)]
pub struct Shelves {
    objects: Rc<RefCell<BTreeMap<String, (Bytes, String)>>>,
    /// The largest piece that came in or went out.
    pub largest_piece: Rc<Cell<usize>>,
    /// How many bytes came in, whether they were kept or not.
    pub came_in: Rc<Cell<u64>>,
    /// From now on everything fails.
    pub fails: Rc<Cell<bool>>,
    /// From now on nothing more has room in memory.
    pub has_no_room: Rc<Cell<bool>>,
    /// From now on what comes gives way to others at its end.
    pub gives_way: Rc<Cell<bool>>,
    /// From now on what comes is kept, but whoever brings it is not told.
    pub loses_answers: Rc<Cell<bool>>,
    /// From now on nothing is deleted.
    pub deletes_nothing: Rc<Cell<bool>>,
    /// So many turns pass until an object is there that is asked for.
    pub turns: Rc<Cell<usize>>,
}

impl Shelves {
    /// The keys of all objects.
    pub fn keys(&self) -> Vec<String> {
        self.objects.borrow().keys().cloned().collect()
    }

    /// An object.
    pub fn object(&self, key: &str) -> Option<Bytes> {
        self.objects.borrow().get(key).map(|(bytes, _)| bytes.clone())
    }

    fn check(&self) -> Result<(), MediaError> {
        if self.fails.get() { Err(MediaError::Unavailable("it is away".to_owned())) } else { Ok(()) }
    }
}

impl MediaStore for Shelves {
    fn put(&self, key: String, mut object: NewObject) -> LocalBoxFuture<'_, Result<u64, MediaError>> {
        Box::pin(async move {
            self.check()?;
            if self.has_no_room.get() {
                return Err(MediaError::NoRoom);
            }
            let mut bytes = Vec::new();
            while let Some(piece) = object.stream.next().await {
                let piece = piece?;
                self.largest_piece.set(self.largest_piece.get().max(piece.len()));
                self.came_in.set(self.came_in.get() + piece.len() as u64);
                bytes.extend_from_slice(&piece);
                if bytes.len() as u64 > object.limit {
                    return Err(MediaError::TooLong);
                }
            }
            if self.gives_way.get() {
                return Err(MediaError::GaveWay);
            }
            let size = bytes.len() as u64;
            if object.length.is_some_and(|length| length != size) {
                return Err(MediaError::Broken);
            }
            self.objects.borrow_mut().insert(key, (bytes.into(), object.content_type));
            if self.loses_answers.get() {
                return Err(MediaError::Unavailable("the answer was lost".to_owned()));
            }
            Ok(size)
        })
    }

    fn get(
        &self,
        key: String,
        range: Option<ByteRange>,
    ) -> LocalBoxFuture<'_, Result<Option<StoredObject>, MediaError>> {
        let found = self.check().map(|()| {
            let (bytes, content_type) = self.objects.borrow().get(&key).cloned()?;
            let size = bytes.len() as u64;
            let bytes = match range {
                Some(ByteRange { offset, length }) => bytes.slice(offset as usize..(offset + length) as usize),
                None => bytes,
            };
            Some(StoredObject { stream: Box::new(Pieces::new(bytes, PIECE)), size, content_type })
        });
        let turns = self.turns.get();
        Box::pin(async move {
            for _ in 0..turns {
                yield_now().await;
            }
            found
        })
    }

    fn delete(&self, keys: Vec<String>) -> LocalBoxFuture<'_, Result<(), MediaError>> {
        assert!(keys.len() <= 1_000);
        if self.deletes_nothing.get() {
            return Box::pin(future::ready(Err(MediaError::Unavailable("it deletes nothing".to_owned()))));
        }
        let deleted = self.check().map(|()| {
            keys.iter().for_each(|key| drop(self.objects.borrow_mut().remove(key)));
        });
        Box::pin(future::ready(deleted))
    }
}

/// Bytes that come piece by piece, and may break off at the end.
pub struct Pieces {
    left: Bytes,
    piece: usize,
    breaks_off: bool,
}

impl Pieces {
    pub fn new(bytes: Bytes, piece: usize) -> Self {
        Self { left: bytes, piece, breaks_off: false }
    }

    pub fn cut_off(bytes: Bytes, piece: usize) -> Self {
        Self { left: bytes, piece, breaks_off: true }
    }
}

impl ByteStream for Pieces {
    fn next(&mut self) -> LocalBoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        let length = self.piece.min(self.left.len());
        Box::pin(future::ready(match length {
            0 if std::mem::take(&mut self.breaks_off) => Some(Err(BodyError::Broken)),
            0 => None,
            length => Some(Ok(self.left.split_to(length))),
        }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl UnreadBody for Pieces {
    fn read(self: Box<Self>, limit: usize) -> LocalBoxFuture<'static, Result<Bytes, BodyError>> {
        Box::pin(future::ready(match (self.breaks_off, self.left.len() > limit) {
            (true, _) => Err(BodyError::Broken),
            (_, true) => Err(BodyError::TooLong),
            _ => Ok(self.left),
        }))
    }

    fn stream(self: Box<Self>) -> Box<dyn ByteStream> {
        self
    }
}
