-- Rollouts: the immutable plan, what people asked for, and where stages and nodes stand.

-- rollout_id is a UUID version 7: its order is the order of creation.
CREATE TABLE rollouts (
    rollout_id uuid NOT NULL,
    generation bigint NOT NULL DEFAULT 1,
    state text NOT NULL,
    name text COLLATE "C" NOT NULL,
    -- The plan as it was hashed. It grows with the fleet; action and settings are copied out of it, so that a tick and a
    -- list need not unpack it.
    plan jsonb NOT NULL,
    plan_hash text NOT NULL,
    action jsonb NOT NULL,
    settings jsonb NOT NULL,
    waiting_on jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    ended_at timestamptz,
    CONSTRAINT rollouts_pkey PRIMARY KEY (rollout_id),
    CONSTRAINT rollouts_state_check CHECK (state IN (
        'DRAFT', 'RUNNING', 'PAUSED', 'ABORTING', 'SUCCEEDED', 'SUCCEEDED_WITH_FAILURES', 'FAILED', 'ABORTED'
    )),
    CONSTRAINT rollouts_ended_at_check CHECK (
        (ended_at IS NOT NULL) = (state IN ('SUCCEEDED', 'SUCCEEDED_WITH_FAILURES', 'FAILED', 'ABORTED'))
    )
);

-- The tick looks for rollouts that have not ended; those that have pile up for ever.
CREATE INDEX rollouts_not_ended_idx ON rollouts (rollout_id) WHERE ended_at IS NULL;

-- What people asked for: rows are added, marked as acted on once, and never otherwise changed.
CREATE TABLE rollout_requests (
    request_id bigint GENERATED ALWAYS AS IDENTITY,
    rollout_id uuid NOT NULL,
    kind text NOT NULL,
    underway text,
    reason text NOT NULL,
    at timestamptz NOT NULL,
    acted_on_at timestamptz,
    CONSTRAINT rollout_requests_pkey PRIMARY KEY (request_id),
    CONSTRAINT rollout_requests_rollout_id_fkey FOREIGN KEY (rollout_id) REFERENCES rollouts (rollout_id),
    CONSTRAINT rollout_requests_kind_check CHECK (kind IN ('START', 'PAUSE', 'RESUME', 'ABORT')),
    CONSTRAINT rollout_requests_underway_check CHECK (
        (kind = 'ABORT') = (underway IS NOT NULL) AND underway IN ('FINISH', 'REVERT')
    )
);

CREATE INDEX rollout_requests_open_idx ON rollout_requests (rollout_id, request_id) WHERE acted_on_at IS NULL;

CREATE TABLE stages (
    rollout_id uuid NOT NULL,
    ordinal integer NOT NULL,
    name text COLLATE "C" NOT NULL,
    state text NOT NULL,
    since timestamptz NOT NULL,
    CONSTRAINT stages_pkey PRIMARY KEY (rollout_id, ordinal),
    CONSTRAINT stages_rollout_id_fkey FOREIGN KEY (rollout_id) REFERENCES rollouts (rollout_id),
    CONSTRAINT stages_state_check CHECK (state IN ('PENDING', 'RUNNING', 'SOAKING', 'PASSED', 'FAILED', 'SKIPPED'))
);

CREATE TABLE node_tasks (
    task_id uuid NOT NULL,
    rollout_id uuid NOT NULL,
    stage integer NOT NULL,
    -- Place in the plan: by stage, cluster and node. Lists are read along it.
    position integer NOT NULL,
    node_id uuid NOT NULL,
    state jsonb NOT NULL,
    -- The state's name in the API, and whether the node may be changing now: made from the state, never written apart.
    state_name text NOT NULL GENERATED ALWAYS AS (
        CASE WHEN state ->> 'state' = 'UNDER_WAY' THEN state ->> 'phase' ELSE state ->> 'state' END
    ) STORED,
    under_way boolean NOT NULL GENERATED ALWAYS AS (state ->> 'state' = 'UNDER_WAY') STORED,
    attempts integer NOT NULL DEFAULT 0,
    generation bigint NOT NULL DEFAULT 1,
    CONSTRAINT node_tasks_pkey PRIMARY KEY (task_id),
    CONSTRAINT node_tasks_rollout_id_position_key UNIQUE (rollout_id, position),
    CONSTRAINT node_tasks_rollout_id_node_id_key UNIQUE (rollout_id, node_id),
    CONSTRAINT node_tasks_stage_fkey FOREIGN KEY (rollout_id, stage) REFERENCES stages (rollout_id, ordinal),
    CONSTRAINT node_tasks_node_id_fkey FOREIGN KEY (node_id) REFERENCES nodes (node_id)
);

-- A node is changed by one rollout at a time, whatever two ticks may think.
CREATE UNIQUE INDEX node_tasks_one_under_way_per_node ON node_tasks (node_id) WHERE under_way;

-- Rollouts that have ended are still ticked until the last of their nodes under way has ended too.
CREATE INDEX node_tasks_under_way_idx ON node_tasks (rollout_id) WHERE under_way;

-- What happened to a node before, in whatever rollout.
CREATE INDEX node_tasks_node_id_idx ON node_tasks (node_id);

-- Every state that a task has been in, in order.
CREATE TABLE task_events (
    event_id bigint GENERATED ALWAYS AS IDENTITY,
    task_id uuid NOT NULL,
    at timestamptz NOT NULL,
    state jsonb NOT NULL,
    CONSTRAINT task_events_pkey PRIMARY KEY (event_id),
    CONSTRAINT task_events_task_id_fkey FOREIGN KEY (task_id) REFERENCES node_tasks (task_id)
);

CREATE INDEX task_events_task_id_idx ON task_events (task_id, event_id);
