-- The fleet: clusters, the tokens that let agents in, nodes with their newest report, and agents.
--
-- Names have the collation "C", so that Postgres sorts them as the pure code does: byte by byte.

CREATE TABLE clusters (
    cluster_id uuid NOT NULL,
    name text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT clusters_pkey PRIMARY KEY (cluster_id),
    CONSTRAINT clusters_name_key UNIQUE (name)
);

-- Only hashes are kept: who reads the database can't enrol.
CREATE TABLE enrolment_tokens (
    token_hash bytea NOT NULL,
    cluster_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT enrolment_tokens_pkey PRIMARY KEY (token_hash),
    CONSTRAINT enrolment_tokens_cluster_id_fkey FOREIGN KEY (cluster_id) REFERENCES clusters (cluster_id),
    CONSTRAINT enrolment_tokens_token_hash_check CHECK (octet_length(token_hash) = 32)
);

-- Lets the sweep of expired tokens find them without reading the others.
CREATE INDEX enrolment_tokens_expires_at_idx ON enrolment_tokens (expires_at);

-- Heartbeats update last_seen_at all the time. It is in no index, and pages keep room, so that those updates stay
-- heap-only and leave the indexes alone.
CREATE TABLE nodes (
    node_id uuid NOT NULL,
    cluster_id uuid NOT NULL,
    name text COLLATE "C" NOT NULL,
    enrolled_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    -- The newest report as a whole; 0 and null before the first.
    report_sequence bigint NOT NULL DEFAULT 0,
    report jsonb,
    reported_at timestamptz,
    -- Rises with every change of one of the node's tasks; agents wait for it to differ.
    assignment_generation bigint NOT NULL DEFAULT 1,
    CONSTRAINT nodes_pkey PRIMARY KEY (node_id),
    CONSTRAINT nodes_cluster_id_name_key UNIQUE (cluster_id, name),
    CONSTRAINT nodes_cluster_id_fkey FOREIGN KEY (cluster_id) REFERENCES clusters (cluster_id),
    CONSTRAINT nodes_report_check CHECK ((report IS NULL) = (reported_at IS NULL))
) WITH (fillfactor = 80);

-- One active credential per node: enrolling again replaces it.
CREATE TABLE agents (
    node_id uuid NOT NULL,
    credential_hash bytea NOT NULL,
    version text NOT NULL,
    enrolled_at timestamptz NOT NULL,
    CONSTRAINT agents_pkey PRIMARY KEY (node_id),
    CONSTRAINT agents_node_id_fkey FOREIGN KEY (node_id) REFERENCES nodes (node_id),
    CONSTRAINT agents_credential_hash_key UNIQUE (credential_hash),
    CONSTRAINT agents_credential_hash_check CHECK (octet_length(credential_hash) = 32)
);
