-- How often an unsettled room was taken in hand, whatever was found meanwhile: it says whose turn it is of what is asked about, and `attempts`
-- how long the pauses are.
ALTER TABLE unsettled_rooms ADD COLUMN looks INTEGER NOT NULL DEFAULT 0;
