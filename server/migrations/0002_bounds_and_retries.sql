-- A call that is repeated finds what it did: the caller's own id of it, and the SHA-256 of what was asked for.
ALTER TABLE requests ADD COLUMN request_key TEXT;
ALTER TABLE requests ADD COLUMN body_sha256 TEXT;
CREATE UNIQUE INDEX requests_by_key ON requests (subject, request_key) WHERE request_key IS NOT NULL;

-- The machine that a token has made, and the SHA-256 of the keys that it came with.
ALTER TABLE tokens ADD COLUMN machine TEXT;
ALTER TABLE tokens ADD COLUMN keys_sha256 TEXT;

-- When a grant may leave its machine's assignment: at its end, or at once when the host has closed or refused it.
ALTER TABLE grants ADD COLUMN leaves_at BIGINT NOT NULL DEFAULT 0;
UPDATE grants SET leaves_at = not_after WHERE closed_at IS NULL AND refused_at IS NULL;
CREATE INDEX grants_leaving ON grants (machine, leaves_at) WHERE removed_generation IS NULL;

-- Of the grants in a machine's assignment, how many each person has, and how long their envelopes are; and how many
-- of the person's requests wait for the machine.
CREATE TABLE held (
  machine TEXT NOT NULL REFERENCES machines (id),
  subject TEXT NOT NULL,
  grants BIGINT NOT NULL,
  bytes BIGINT NOT NULL,
  waiting BIGINT NOT NULL,
  PRIMARY KEY (machine, subject)
);
INSERT INTO held (machine, subject, grants, bytes, waiting)
  SELECT machine, subject, SUM(grants), SUM(bytes), SUM(waiting) FROM (
    SELECT machine, subject, 1 AS grants, LENGTH(envelope) AS bytes, 0 AS waiting FROM grants
    WHERE removed_generation IS NULL
    UNION ALL
    SELECT outcomes.machine, requests.subject, 0, 0, 1
    FROM outcomes JOIN requests ON requests.id = outcomes.request WHERE outcomes.state = 'waiting'
  ) AS entries
  GROUP BY machine, subject;
