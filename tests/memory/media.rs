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

    /// One who is silent before each piece.
    fn always(world: &World, length: usize, silent_ms: u32) -> Box<Self> {
        Box::new(Self { silences: usize::MAX, silent_at: length, ..*Self::new(world, length, silent_ms) })
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

/// Takes parts as a store does.
struct Taking<'a> {
    world: &'a World,
    admission: &'a Rc<Admission>,
}

impl Taking<'_> {
    fn parts(&self, sender: &str, stream: Box<Slow>, limit: u64) -> Parts {
        Parts::new(stream, limit, sender, Rc::clone(self.admission), Rc::new(self.world.clone()))
    }

    /// How long the parts are that come.
    async fn all(&self, sender: &str, stream: Box<Slow>) -> Result<Vec<usize>, MediaError> {
        let mut parts = self.parts(sender, stream, 100 << 20);
        let mut lengths = Vec::new();
        while let Some(part) = parts.next().await? {
            lengths.push(part.len());
        }
        Ok(lengths)
    }

    /// The same when others have begun, and for how long.
    async fn later(&self, sender: &str, stream: Box<Slow>) -> (Result<Vec<usize>, MediaError>, i64) {
        self.world.clone().sleep(4_000).await;
        let begun = self.world.now_ms();
        (self.all(sender, stream).await, self.world.now_ms() - begun)
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
    let taking = &Taking { world, admission };
    world.run(join_all((0..senders).map(|number| async move {
        taking.all(&format!("@{number}:hs.test"), Slow::new(world, length, silent_ms)).await
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
    let taking = Taking { world: &world, admission: &admission };
    let done = Cell::new(0);
    let small = async {
        let begun = world.now_ms();
        let all = join_all((0..40).map(|_| async {
            let stream = Slow::new(&world, 100_000, 0);
            let mut parts = taking.parts("peer.test", stream, 1 << 20);
            assert_eq!(parts.next().await.map(|part| part.map(|part| part.len())), Ok(Some(100_000)));
            done.set(done.get() + 1);
        }));
        all.await;
        world.now_ms() - begun
    };
    let long = join_all((0..3).map(|_| async {
        let stream = Slow::new(&world, 4 * MIB, 9_000);
        let mut parts = taking.parts("peer.test", stream, 100 << 20);
        parts.next().await.map(|part| part.map(|part| part.len()))
    }));
    let (long, waited) = world.run(join(long, small));
    assert_eq!((long, waited, done.get()), ([(); 3].map(|()| Ok(Some(4 * MIB))).to_vec(), 0, 40));
}

#[test]
fn who_is_too_slow_is_given_up() {
    let (world, admission) = (World::new(), Rc::new(Admission::default()));
    let taking = Taking { world: &world, admission: &admission };
    assert_eq!(taken(&world, &admission, 1, MIB, 29_000), [Ok(vec![MIB])]);
    assert_eq!(taken(&world, &admission, 1, MIB, 31_000), [Err(MediaError::Broken)]);
    // Nor does a part come for ever, piece by piece.
    for (silences, is_taken) in [(5, true), (7, false)] {
        let stream = Box::new(Slow { silences, ..*Slow::new(&world, MIB, 20_000) });
        let mut parts = taking.parts("peer.test", stream, 1 << 20);
        assert_eq!(world.run(parts.next()).is_ok(), is_taken, "{silences}");
    }
    // More than is taken, and no more than that.
    let mut parts = taking.parts("peer.test", Slow::new(&world, MIB, 0), 1_000_000);
    assert_eq!(world.run(parts.next()), Err(MediaError::TooLong));
    let mut parts = taking.parts("peer.test", Slow::new(&world, MIB, 0), 1 << 20);
    assert_eq!(world.run(parts.next()).map(|part| part.map(|part| part.len())), Ok(Some(MIB)));
    assert_eq!(world.run(parts.next()), Ok(None));
}

#[test]
fn slow_senders_give_way_to_others_who_wait() {
    let (world, admission) = (World::new(), Rc::new(Admission::default()));
    let taking = Taking { world: &world, admission: &admission };
    let each = [(200, "one.test"), (300, "two.test"), (250, "three.test")];
    let slow = || join_all(each.map(|(ms, name)| taking.all(name, Slow::always(&world, 4 * MIB, ms))));
    let whole = || Ok(vec![4 * MIB]);
    // As long as nobody waits who has less, they come as they may; whoever has as much is refused.
    let (others, (own, waited)) = world.run(join(slow(), taking.later("two.test", Slow::new(&world, 4 * MIB, 0))));
    assert_eq!((others, own), (vec![whole(), whole(), whole()], Err(MediaError::NoRoom)));
    assert_eq!(waited, 20_000);
    // The slowest gives way, and no other.
    let (others, (own, waited)) = world.run(join(slow(), taking.later("alice", Slow::new(&world, 4 * MIB, 0))));
    assert_eq!((others, own), (vec![whole(), Err(MediaError::GaveWay), whole()], whole()));
    assert!(waited < 10_000, "{waited}");
    // So it is with small files, of which one sender holds many.
    let after_the_first = || Box::new(Slow { silent_at: 99_999, ..*Slow::always(&world, 100_000, 15_000) });
    let small = || join_all((0..40).map(|_| taking.all("one.test", after_the_first())));
    let (others, (own, waited)) = world.run(join(small(), taking.later("alice", Slow::new(&world, 100_000, 0))));
    assert_eq!(others.iter().filter(|outcome| outcome.is_ok()).count(), 39);
    assert_eq!(own, Ok(vec![100_000]));
    assert!(waited < 6_000, "{waited}");
    // What comes slowly from who waits keeps nobody else from giving way to them.
    let (world, admission) = (World::new(), Rc::new(Admission::default()));
    let taking = Taking { world: &world, admission: &admission };
    let after_the_first = || Box::new(Slow { silent_at: 99_999, ..*Slow::always(&world, 100_000, 15_000) });
    let others = async {
        world.clone().sleep(1_000).await;
        join_all((0..39).map(|_| taking.all("one.test", after_the_first()))).await
    };
    let small = join(taking.all("alice", after_the_first()), others);
    let ((first, others), (own, waited)) = world.run(join(small, taking.later("alice", Slow::new(&world, 100_000, 0))));
    assert_eq!(others.iter().filter(|outcome| outcome.is_ok()).count(), 38);
    assert_eq!((first, own), (Ok(vec![100_000]), Ok(vec![100_000])));
    assert!(waited < 6_000, "{waited}");
}

#[test]
fn what_loses_its_room_halfway_is_told_from_what_found_none() {
    let (world, admission) = (World::new(), Rc::new(Admission::default()));
    let taking = Taking { world: &world, admission: &admission };
    let mut parts = taking.parts("peer.test", Slow::new(&world, 12 * MIB, 0), 100 << 20);
    assert_eq!(world.run(parts.next()).map(|part| part.map(|part| part.len())), Ok(Some(PART_BYTES)));
    // The store takes so long that the part counts no more.
    world.advance(60_000);
    let others =
        ["one", "two", "three"].map(|name| admission.reserve_for_part(PART_BYTES, &name.into(), world.now_ms()));
    assert!(others.iter().all(Option::is_some));
    assert_eq!(world.run(parts.next()), Err(MediaError::GaveWay));
    let mut parts = taking.parts("other.test", Slow::new(&world, 12 * MIB, 0), 100 << 20);
    assert_eq!(world.run(parts.next()), Err(MediaError::NoRoom));
}

#[test]
fn slow_senders_do_not_make_one_another_give_way_in_turn() {
    let (world, admission) = (World::new(), Rc::new(Admission::default()));
    let (taking, gave_way) = (Taking { world: &world, admission: &admission }, Cell::new(0));
    let (taking, world, gave_way) = (&taking, &world, &gave_way);
    // As their users do, each asks again at once, for as long as a fetch is waited for.
    let outcomes = world.run(join_all((0..4).map(|number| async move {
        let begun = world.now_ms();
        while world.now_ms() - begun < 90_000 {
            match taking.all(&format!("{number}.test"), Slow::always(world, 10 * MIB, 105)).await {
                Err(MediaError::GaveWay) => gave_way.set(gave_way.get() + 1),
                Err(MediaError::NoRoom) => {}
                outcome => return outcome,
            }
        }
        Err(MediaError::NoRoom)
    })));
    assert_eq!(outcomes, [(); 4].map(|()| Ok(vec![PART_BYTES, PART_BYTES])));
    assert_eq!(gave_way.get(), 1);
}

#[test]
fn who_has_more_than_a_share_gives_way_to_others_who_wait() {
    let (world, admission) = (World::new(), Rc::new(Admission::default()));
    let taking = Taking { world: &world, admission: &admission };
    // They come fast enough.
    let three = || join_all((0..3).map(|_| taking.all("mallory", Slow::always(&world, 12 * MIB, 40))));
    let whole = || Ok(vec![PART_BYTES, PART_BYTES, 2 * MIB]);
    let (theirs, (own, waited)) = world.run(join(three(), taking.later("mallory", Slow::new(&world, 4 * MIB, 0))));
    assert_eq!((theirs, own, waited), (vec![whole(), whole(), whole()], Err(MediaError::NoRoom), 20_000));
    let (theirs, (own, waited)) = world.run(join(three(), taking.later("alice", Slow::new(&world, 4 * MIB, 0))));
    assert_eq!((theirs, own), (vec![whole(), whole(), Err(MediaError::GaveWay)], Ok(vec![4 * MIB])));
    assert!((10_000..12_000).contains(&waited), "{waited}");
    // Those who have no more than a share go on.
    let three = join_all(["one", "two", "three"].map(|name| taking.all(name, Slow::always(&world, 12 * MIB, 40))));
    let (theirs, (own, _)) = world.run(join(three, taking.later("alice", Slow::new(&world, 4 * MIB, 0))));
    assert_eq!((theirs, own), (vec![whole(), whole(), whole()], Err(MediaError::NoRoom)));
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
