-- The warehouse's fixed tables. Idempotent: applied by `nightshift up` and before every run.
-- Tables that are derived from a contract (raw.*, quarantine.*) or from a use case
-- (predictions.<use_case>*) are created by their stage.

create schema if not exists raw;
create schema if not exists quarantine;
create schema if not exists ops;
create schema if not exists predictions;
create schema if not exists monitoring;

-- One row a landed file. rows_in = rows_loaded + rows_quarantined, and the database holds us to it.
create table if not exists ops.landing_files (
    file_id bigint generated always as identity primary key,
    source text not null,
    landed_date date not null,
    path text not null,
    sha256 text not null,
    bytes bigint not null,
    status text not null check (status in ('loaded', 'refused')),
    reason text,
    rows_in bigint not null,
    rows_loaded bigint not null,
    rows_quarantined bigint not null,
    loaded_at timestamptz not null default now(),
    check (rows_in = rows_loaded + rows_quarantined),
    check ((status = 'refused') = (reason is not null))
);
create unique index if not exists landing_files_loaded_once
    on ops.landing_files (source, path) where status = 'loaded';
create index if not exists landing_files_landed_date on ops.landing_files (source, landed_date);

-- Append-only: each landed day of a source whose rows in raw have changed, and why. Whoever builds
-- on raw keeps the last change_id that it has built, and rebuilds the days after it.
create table if not exists ops.changed_days (
    change_id bigint generated always as identity primary key,
    source text not null,
    landed_date date not null,
    reason text not null,
    changed_at timestamptz not null default now()
);
create index if not exists changed_days_source on ops.changed_days (source, change_id);

-- One row a stage's run: what the CLI, Airflow and the tests did.
create table if not exists ops.runs (
    run_id bigint generated always as identity primary key,
    stage text not null,
    use_case text,
    as_of date not null,
    status text not null check (status in ('running', 'succeeded', 'failed')),
    started_at timestamptz not null default clock_timestamp(),
    ended_at timestamptz,
    result jsonb,
    error text
);
create index if not exists runs_as_of on ops.runs (as_of, stage);

create table if not exists ops.quality_results (
    run_id bigint not null references ops.runs (run_id),
    as_of date not null,
    source text not null,
    expectation text not null,
    column_name text,
    success boolean not null,
    observed jsonb,
    checked_at timestamptz not null default now()
);

create table if not exists ops.gate_results (
    mlflow_run_id text not null,
    use_case text not null,
    as_of date not null,
    gate text not null,
    passed boolean not null,
    observed double precision,
    threshold double precision,
    detail text not null,
    judged_at timestamptz not null default now(),
    primary key (mlflow_run_id, gate)
);

-- Append-only: each move of the champion.
create table if not exists ops.promotions (
    promotion_id bigint generated always as identity primary key,
    use_case text not null,
    as_of date not null,
    from_version text,
    to_version text not null,
    mlflow_run_id text not null,
    reason text not null,
    promoted_at timestamptz not null default now()
);

-- One row a publication: one (use_case, as_of, model_version) scored once.
create table if not exists ops.publications (
    publication_id text primary key,
    use_case text not null,
    as_of date not null,
    model_version text not null,
    mlflow_run_id text not null,
    rows bigint not null,
    features_sha256 text not null,
    scored_at timestamptz not null,
    published_at timestamptz not null default now()
);

-- The publication that readers see for each (use_case, as_of). Publishing is moving these.
create table if not exists predictions.pointers (
    use_case text not null,
    as_of date not null,
    publication_id text not null references ops.publications (publication_id),
    moved_at timestamptz not null default now(),
    primary key (use_case, as_of)
);

-- The quality of published predictions, measured once their labels are mature.
create table if not exists monitoring.matured_quality (
    use_case text not null,
    as_of date not null,
    model_version text not null,
    scorer text not null,
    metric text not null,
    value double precision not null,
    rows bigint not null,
    measured_at timestamptz not null default now(),
    primary key (use_case, as_of, model_version, scorer, metric)
);

-- Before the first publication a reader shall hear that there is no such table, not that it may not
-- look. In a Postgres of the user's own the role may not be there yet.
do $$
begin
    if exists (select from pg_roles where rolname = 'nightshift_reader') then
        grant usage on schema predictions to nightshift_reader;
    end if;
end $$;
