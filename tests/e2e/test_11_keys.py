"""A one-time key is given out once, however many ask for one at the same time."""

from concurrent.futures import ThreadPoolExecutor

from device import Device

CLAIMS = 200
KEYS = 150
ALGORITHM = "signed_curve25519"


def test_a_one_time_key_that_many_claim_at_once_is_given_to_one(worker):
    owner = worker.user("owner")
    device = Device.log_in(worker, owner.user_id, "PHONE")
    names = [f"K{number:03}" for number in range(KEYS)]
    fallback = device.one_time_keys(["FALLBACK"], fallback=True)
    one_time_keys = device.one_time_keys(names)
    device.client.post("/keys/upload", {"one_time_keys": one_time_keys, "fallback_keys": fallback})
    claimants = [worker.user(f"claimant{number}") for number in range(20)]
    body = {"one_time_keys": {owner.user_id: {device.id: ALGORITHM}}}

    def claim(number):
        answer = claimants[number % len(claimants)].post("/keys/claim", body)
        ((name, key),) = answer["one_time_keys"][owner.user_id][device.id].items()
        return name, key

    with ThreadPoolExecutor(CLAIMS) as pool:
        claimed = list(pool.map(claim, range(CLAIMS)))
    assert all({**one_time_keys, **fallback}[name] == key for name, key in claimed)
    (fallback_name,) = fallback
    one_time = [name for name, _ in claimed if name != fallback_name]
    assert sorted(one_time) == sorted(one_time_keys), "each is given out, and none twice"
    assert len(claimed) - len(one_time) == CLAIMS - KEYS
    told = device.client.sync()
    assert told["device_one_time_keys_count"] == {ALGORITHM: 0}
    assert told["device_unused_fallback_key_types"] == []
