//! The inbound Server-Server API, endpoint by endpoint, against servers in memory.

mod common;
#[test]
fn time_moves_only_when_everybody_waits() {
    use verge::platform::Clock;
    let world = common::network::World::new();
    let before = world.now_ms();
    world.run(world.sleep(5_000));
    assert_eq!(world.now_ms(), before + 5_000);
}
