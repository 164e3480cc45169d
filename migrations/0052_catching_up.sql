-- A destination that was away gets the newest event of each room first, up to the outbox position `catch_up_to`; those up to
-- `caught_up` are done. Both are NULL where it is sent all in order. `txn_newest`: the last position of the transaction in flight,
-- where that is of such events.
ALTER TABLE destinations ADD COLUMN catch_up_to INTEGER;
ALTER TABLE destinations ADD COLUMN caught_up INTEGER;
ALTER TABLE destinations ADD COLUMN txn_newest INTEGER;
