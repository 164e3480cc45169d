//! Media take no more memory than there is, however many come at once and however slowly.

use std::{any::Any, cell::Cell, rc::Rc};

use bytes::Bytes;
use futures_util::future::{join, join_all};
use http::Request;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use serde_json::Value;
use verge::{
    admission::Admission,
    media::parts::{PART_BYTES, Parts},
    platform::{
        BodyError, Clock, LocalBoxFuture,
        media::{ByteStream, MediaError},
    },
};

use crate::{MIB, common::network::World, home::Home, measured};

/// A sender of whom so many bytes come in small pieces, which take no memory here; before the last of them they are silent for a while,
/// so many times.
struct Slow {
    clock: Rc<dyn Clock>,
    left: usize,
    silent_at: usize,
    silent_ms: u32,
    silences: usize,
}

impl Slow {
    const PIECE: usize = 16 * 1024;

    fn new(world: &World, length: usize, silent_ms: u32) -> Box<Self> {
        Box::new(Self { clock: Rc::new(world.clone()), left: length, silent_at: length / 8, silent_ms, silences: 1 })
    }
}

impl ByteStream for Slow {
    fn next(&mut self) -> LocalBoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(async move {
            if self.silences > 0 && self.left <= self.silent_at {
                self.silences -= 1;
                self.clock.sleep(self.silent_ms).await;
            }
            let length = Self::PIECE.min(self.left);
            self.left -= length;
            (length > 0).then(|| Ok(Bytes::from_static(&[7; Self::PIECE]).slice(..length)))
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// How long the parts of what so many senders send at once are.
fn taken(
    world: &World,
    admission: &Rc<Admission>,
    senders: usize,
    length: usize,
    silent_ms: u32,
) -> Vec<Result<Vec<usize>, MediaError>> {
    world.run(join_all((0..senders).map(|_| async move {
        let stream = Slow::new(world, length, silent_ms);
        let mut parts = Parts::new(stream, 100 << 20, Rc::clone(admission), Rc::new(world.clone()));
        let mut lengths = Vec::new();
        while let Some(part) = parts.next().await? {
            lengths.push(part.len());
        }
        Ok(lengths)
    })))
}

#[test]
fn slow_senders_of_media_take_no_more_memory_than_there_is_for_them() {
    let (world, admission) = (World::new(), Rc::new(Admission::default()));
    let (outcomes, most, left) = measured(|| taken(&world, &admission, 40, 4 * MIB, 9_000));
    assert!(most < 21 * MIB, "{} KiB", most / 1024);
    // While there is room for some, others wait for it; they are not read from meanwhile.
    let (done, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!((done.len(), refused.len()), (9, 31));
    assert!(done.iter().all(|lengths| lengths.as_deref() == Ok(&[4 * MIB])));
    assert!(refused.iter().all(|outcome| *outcome == Err(MediaError::NoRoom)));
    assert!(left < MIB, "{left}");
    // There is room again, also for what is sent beside much else that is in work.
    let answer = admission.reserve_memory(58 * MIB, world.now_ms()).unwrap();
    let parts = [PART_BYTES, PART_BYTES, 2 * MIB].to_vec();
    assert_eq!(taken(&world, &admission, 3, 12 * MIB, 9_000), [(); 3].map(|()| Ok(parts.clone())));
    drop(answer);
}

#[test]
fn small_files_come_while_long_ones_are_slow() {
    let (world, admission) = (World::new(), Rc::new(Admission::default()));
    let done = Cell::new(0);
    let small = async {
        let begun = world.now_ms();
        let all = join_all((0..40).map(|_| async {
            let stream = Slow::new(&world, 100_000, 0);
            let mut parts = Parts::new(stream, 1 << 20, Rc::clone(&admission), Rc::new(world.clone()));
            assert_eq!(parts.next().await.map(|part| part.map(|part| part.len())), Ok(Some(100_000)));
            done.set(done.get() + 1);
        }));
        all.await;
        world.now_ms() - begun
    };
    let long = join_all((0..3).map(|_| async {
        let stream = Slow::new(&world, 4 * MIB, 9_000);
        let mut parts = Parts::new(stream, 100 << 20, Rc::clone(&admission), Rc::new(world.clone()));
        parts.next().await.map(|part| part.map(|part| part.len()))
    }));
    let (long, waited) = world.run(join(long, small));
    assert_eq!((long, waited, done.get()), ([(); 3].map(|()| Ok(Some(4 * MIB))).to_vec(), 0, 40));
}

#[test]
fn who_is_too_slow_is_given_up() {
    let (world, admission) = (World::new(), Rc::new(Admission::default()));
    assert_eq!(taken(&world, &admission, 1, MIB, 29_000), [Ok(vec![MIB])]);
    assert_eq!(taken(&world, &admission, 1, MIB, 31_000), [Err(MediaError::Broken)]);
    // Nor does a part come for ever, piece by piece.
    for (silences, is_taken) in [(5, true), (7, false)] {
        let stream = Box::new(Slow { silences, ..*Slow::new(&world, MIB, 20_000) });
        let mut parts = Parts::new(stream, 1 << 20, Rc::clone(&admission), Rc::new(world.clone()));
        assert_eq!(world.run(parts.next()).is_ok(), is_taken, "{silences}");
    }
    // More than is taken, and no more than that.
    let mut parts = Parts::new(Slow::new(&world, MIB, 0), 1_000_000, Rc::clone(&admission), Rc::new(world.clone()));
    assert_eq!(world.run(parts.next()), Err(MediaError::TooLong));
    let mut parts = Parts::new(Slow::new(&world, MIB, 0), 1 << 20, admission, Rc::new(world.clone()));
    assert_eq!(world.run(parts.next()).map(|part| part.map(|part| part.len())), Ok(Some(MIB)));
    assert_eq!(world.run(parts.next()), Ok(None));
}

/// The files of which thumbnails are made are in memory while they are read.
#[test]
fn thumbnails_of_large_files_are_made_a_few_at_a_time() {
    let home = Home::new();
    let alice = home.register("alice");
    let mut file = Vec::new();
    PngEncoder::new(&mut file).write_image(&[9; 3 * 400 * 400], 400, 400, ExtendedColorType::Rgb8).unwrap();
    // What comes after its end is no part of the image.
    file.resize(8 * MIB, 0);
    let targets = [(); 6].map(|()| {
        let answer = home.raw("POST", "/_matrix/media/v3/upload", Some(&alice.token), file.clone());
        let answer: Value = serde_json::from_slice(answer.body()).unwrap();
        let path = answer["content_uri"].as_str().unwrap().replace("mxc://", "");
        format!("/_matrix/client/v1/media/thumbnail/{path}?width=32&height=32&method=crop")
    });
    home.world.shelves("hs.test").turns.set(20);
    let ask = |target: &String| {
        let request = Request::get(target).header("Authorization", format!("Bearer {}", alice.token));
        home.server.handle(request.body(Bytes::new()).unwrap())
    };
    let (answers, most, _) = measured(|| home.world.run(join_all(targets.iter().map(ask))));
    assert_eq!(answers.iter().map(|answer| answer.status().as_u16()).collect::<Vec<_>>(), [200; 6]);
    assert!(most < 20 * MIB, "{} KiB", most / 1024);
}
