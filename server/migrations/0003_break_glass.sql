-- What hosts have told of break-glass: they tell it on each connection, and it is one event.
CREATE TABLE break_glass (
  machine TEXT NOT NULL REFERENCES machines (id),
  id TEXT NOT NULL,
  told_at BIGINT NOT NULL,
  PRIMARY KEY (machine, id)
);
