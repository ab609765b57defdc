-- Which server runs a background task on its timer. It saves work when several servers share this database; nothing
-- depends on it being exclusive, since every write names the generation that it read.
CREATE TABLE leases (
    task text NOT NULL,
    holder uuid NOT NULL,
    until timestamptz NOT NULL,
    CONSTRAINT leases_pkey PRIMARY KEY (task)
);
