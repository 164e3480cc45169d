-- A work of large_joins is not begun anew before this time, whatever its lease: asking for the rest of a room's state again and again
-- costs whoever gives it as much as us. (The stage of partial_rooms is 3 where that rest is too large for us, and the members are not
-- going to be known.)
ALTER TABLE large_joins ADD COLUMN not_before INTEGER NOT NULL DEFAULT 0;
