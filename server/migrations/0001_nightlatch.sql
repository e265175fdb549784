-- Times are microseconds since 1970, ids and JSON are text, envelopes and events the exact bytes.

CREATE TABLE installation (
  only BIGINT PRIMARY KEY CHECK (only = 1),
  id TEXT NOT NULL,
  -- JSON list: host names and addresses in the server's certificate, the first one leading.
  host_names TEXT NOT NULL,
  created_at BIGINT NOT NULL
);

CREATE TABLE users (
  subject TEXT PRIMARY KEY,
  -- JSON list of role names.
  roles TEXT NOT NULL,
  -- Hex SHA-256 of the one certificate that counts.
  fingerprint TEXT NOT NULL,
  issued_at BIGINT NOT NULL
);

CREATE TABLE tokens (
  secret_sha256 TEXT PRIMARY KEY,
  -- The only name it may enrol; any if null.
  machine_name TEXT,
  may_replace BIGINT NOT NULL,
  created_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  used_at BIGINT
);

CREATE TABLE machines (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  receipt_key BYTEA NOT NULL,
  created_at BIGINT NOT NULL,
  -- Set when another machine took over the name.
  retired_at BIGINT,
  last_seen_at BIGINT,
  address TEXT,
  agent_version TEXT,
  kernel_version TEXT,
  -- JSON, null until the machine was heard; a heard machine without a ceiling has the JSON null.
  host_guarded TEXT,
  ceiling TEXT,
  generation BIGINT NOT NULL,
  -- JSON, null without a policy.
  policy TEXT,
  policy_epoch BIGINT NOT NULL,
  policy_number BIGINT NOT NULL,
  policy_envelope BYTEA,
  policy_updated_at BIGINT,
  receipt_sequence BIGINT NOT NULL,
  -- Hex SHA-256 of the last receipt's envelope, empty before the first.
  receipt_sha256 TEXT NOT NULL
);
CREATE UNIQUE INDEX machines_by_name ON machines (name) WHERE retired_at IS NULL;

CREATE TABLE requests (
  id TEXT PRIMARY KEY,
  subject TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  -- JSON: ports, sources, span, justification.
  wish TEXT NOT NULL
);

CREATE TABLE outcomes (
  request TEXT NOT NULL REFERENCES requests (id),
  position BIGINT NOT NULL,
  machine TEXT NOT NULL REFERENCES machines (id),
  -- waiting, signed, withdrawn, denied
  state TEXT NOT NULL,
  grant_id TEXT,
  reason TEXT,
  message TEXT,
  PRIMARY KEY (request, position)
);
CREATE INDEX outcomes_waiting ON outcomes (machine, request) WHERE state = 'waiting';

CREATE TABLE grants (
  id TEXT PRIMARY KEY,
  machine TEXT NOT NULL REFERENCES machines (id),
  request TEXT NOT NULL REFERENCES requests (id),
  subject TEXT NOT NULL,
  -- JSON lists.
  sources TEXT NOT NULL,
  ports TEXT NOT NULL,
  envelope BYTEA NOT NULL,
  not_before BIGINT NOT NULL,
  not_after BIGINT NOT NULL,
  -- The grant is in the machine's assignments from added_generation on and before removed_generation.
  added_generation BIGINT NOT NULL,
  removed_generation BIGINT,
  ended_at BIGINT,
  ended_by TEXT,
  end_reason TEXT,
  opened_at BIGINT,
  closed_at BIGINT,
  close_reason TEXT,
  refused_at BIGINT,
  refuse_reason TEXT
);
CREATE INDEX grants_by_machine ON grants (machine, id);
CREATE INDEX grants_by_subject ON grants (subject, id);
CREATE INDEX grants_assigned ON grants (machine, added_generation) WHERE removed_generation IS NULL;
CREATE INDEX grants_removed ON grants (machine, removed_generation) WHERE removed_generation IS NOT NULL;
CREATE INDEX grants_by_end ON grants (not_after);
CREATE INDEX grants_open ON grants (machine) WHERE opened_at IS NOT NULL AND closed_at IS NULL;
CREATE INDEX grants_never_opened ON grants (machine)
  WHERE ended_at IS NOT NULL AND opened_at IS NULL AND closed_at IS NULL AND refused_at IS NULL;

CREATE TABLE receipts (
  machine TEXT NOT NULL REFERENCES machines (id),
  sequence BIGINT NOT NULL,
  -- Hex SHA-256 of the envelope: a restored host may say something else under an old number.
  sha256 TEXT NOT NULL,
  envelope BYTEA NOT NULL,
  stored_at BIGINT NOT NULL,
  PRIMARY KEY (machine, sequence, sha256)
);

CREATE TABLE events (
  sequence BIGINT PRIMARY KEY,
  at BIGINT NOT NULL,
  kind TEXT NOT NULL,
  machine TEXT,
  grant_id TEXT,
  subject TEXT,
  json BYTEA NOT NULL
);
CREATE INDEX events_by_machine ON events (machine, sequence);
CREATE INDEX events_by_grant ON events (grant_id, sequence);
CREATE INDEX events_by_subject ON events (subject, sequence);
