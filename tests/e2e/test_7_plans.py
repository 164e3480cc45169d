"""How workerd's SQLite runs the server's SQL: no statement may read the whole of a table that grows.

Its planner is not that of the SQLite of the native tests, and knows nothing of our tables. All statements are taken out of the
source, so that a new one is looked at too.
"""

import json
import re
import subprocess

import pytest

import statements
from worker import ROOT, _BINARIES

# Tables that stay small: a row for each stream, for each join under way, for each registration between its stages, for each
# kind of old rows that is forgotten in slices, for each migration, one for a move.
SMALL = {"streams", "pending_joins", "registrations", "walks", "d1_migrations", "engine"}

# Statements that may read a whole table, and why.
MAY_SCAN: dict[str, str] = {"edge/moving/steps/mod.rs IS_USED": "it asks whether there is a row, and reads one"}


@pytest.fixture(scope="module")
def explained():
    """By statement: where it stands, and its plans without and with statistics. And all tables."""
    found = statements.statements()
    node = [_BINARIES / "node", ROOT / "tests" / "e2e" / "plans.mjs", ROOT / "migrations"]
    answer = subprocess.run(node, input=json.dumps(list(found)), capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert answer.returncode == 0, answer.stderr
    answer = json.loads(answer.stdout)
    plans = zip(*answer["plans"])
    return {sql: (places, plan) for (sql, places), plan in zip(found.items(), plans)}, set(answer["tables"])


def test_no_statement_reads_the_whole_of_a_table_that_grows(explained):
    plans, tables = explained
    scanned = {}
    for sql, (places, both) in plans.items():
        lines = [line for plan in both for line in scans(sql, plan, tables - SMALL)]
        if lines:
            scanned.update({place: sorted(set(lines)) for place in places})
    unexpected = {place: lines for place, lines in scanned.items() if place not in MAY_SCAN}
    assert not unexpected, json.dumps(unexpected, indent=1)


def test_all_statements_are_found(explained):
    plans, _ = explained
    # As many as there are calls of `Statement::new` with something else than a variable, at the very least.
    source = "".join(path.read_text() for path in (statements.SOURCE / "store").rglob("*.rs"))
    named = set(re.findall(r"Statement::new\(\s*(?:super::)?(?:\w+::)*([A-Z][A-Z_]+)\b", source))
    found = {place.split()[1] for places, _ in plans.values() for place in places}
    assert named <= found
    assert len(plans) > 100


@pytest.mark.parametrize(
    "sql, plan, scanned",
    [
        ("SELECT 1 FROM events AS e", ["SCAN e"], True),
        ("SELECT 1 FROM events", ["SCAN events USING INDEX some_index"], True),
        ("SELECT 1 FROM a JOIN events AS p", ["SEARCH p USING AUTOMATIC PARTIAL COVERING INDEX (room_id=?)"], True),
        ("SELECT MIN(pos) FROM events AS s", ["SEARCH s USING PRIMARY KEY"], True),
        ("DELETE FROM events AS g WHERE 1", ["SCAN g"], True),
        ("UPDATE OR REPLACE events SET pos = 1", ["SCAN events"], True),
        ("SELECT 1 FROM json_each(?1) AS e JOIN events AS x", ["SCAN e VIRTUAL TABLE INDEX 1:", "SEARCH x USING"], True),
        ("SELECT 1 FROM json_each(?1) AS e", ["SCAN e VIRTUAL TABLE INDEX 1:"], False),
        ("WITH chain AS (SELECT 1) SELECT 1 FROM chain", ["SCAN chain", "SCAN CONSTANT ROW"], False),
        ("SELECT 1 FROM events AS e", ["SEARCH e USING INTEGER PRIMARY KEY (rowid=?)"], False),
        ("SELECT 1 FROM streams AS s", ["SCAN s"], False),
    ],
)
def test_the_check_itself(sql, plan, scanned):
    assert bool(scans(sql, plan, {"events"})) == scanned


def scans(sql, plan, growing):
    """The lines of the plan that say that the whole of one of these tables is read, or that it is indexed on the fly."""
    names = {name for table in growing if re.search(rf"\b{table}\b", sql) for name in aliases(sql, table)}
    bad = []
    for line in plan:
        reads = re.match(r"(SCAN|SEARCH) (\w+)(.*)", line)
        if not reads or reads[2] not in names or "VIRTUAL TABLE" in line:
            continue
        if reads[1] == "SCAN" or "AUTOMATIC" in line or "(" not in reads[3]:
            bad.append(line)
    return bad


def aliases(sql, table):
    """The names by which plans may call the table in this statement."""
    before = r"FROM|JOIN|UPDATE|UPDATE\s+OR\s+\w+|INTO|,"
    named = re.findall(rf"\b(?:{before})\s+{table}\s+AS\s+(\w+)", sql)
    bare = re.search(rf"\b(?:{before})\s+{table}\b(?!\s+AS\b)", sql)
    return set(named) | ({table} if bare else set())
