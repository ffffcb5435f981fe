-- The warehouse's fixed tables. Idempotent: applied by `nightshift up` and before every run.
-- Tables that are derived from a contract (raw.*, quarantine.*) or from a use case
-- (predictions.<use_case>*) are created by their stage.

create schema if not exists raw;
create schema if not exists quarantine;
create schema if not exists ops;
create schema if not exists predictions;
create schema if not exists monitoring;
create schema if not exists studies; -- its tables are Optuna's

-- One row a version of a landed file: loaded; refused; a duplicate of a loaded one; or loaded once
-- and replaced since. rows_in = rows_loaded + rows_quarantined, and the database holds us to it.
create table if not exists ops.landing_files (
    file_id bigint generated always as identity primary key,
    source text not null,
    landed_date date not null,
    path text not null,
    sha256 text not null,
    bytes bigint not null,
    version text not null default '',
    status text not null check (status in ('loaded', 'refused', 'duplicate', 'replaced')),
    reason text,
    rows_in bigint not null,
    rows_loaded bigint not null,
    rows_quarantined bigint not null,
    loaded_at timestamptz not null default now(),
    check (rows_in = rows_loaded + rows_quarantined),
    check ((status = 'loaded') = (reason is null))
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

-- The last of a source's changes that the marts were built from, and the dbt project that built them.
create table if not exists ops.built_changes (
    source text primary key,
    change_id bigint not null,
    project_sha256 text not null
);

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

-- One row a rule and landed day that a quality check looked at. `checked` is the source, or the mart
-- made of it; `examples` names rows by file and position, or by key.
do $$
begin
    -- a table of an earlier form, whose rows no longer say which rule they are of
    if exists (select from information_schema.columns
               where table_schema = 'ops' and table_name = 'quality_results')
       and not exists (select from information_schema.columns
                       where table_schema = 'ops' and table_name = 'quality_results'
                         and column_name = 'severity') then
        drop table ops.quality_results;
    end if;
end $$;
create table if not exists ops.quality_results (
    run_id bigint not null references ops.runs (run_id),
    as_of date not null,
    checked text not null,
    source text not null,
    landed_date date not null,
    rule text not null,
    severity text not null check (severity in ('error', 'warning')),
    expectation text,
    column_name text,
    success boolean not null,
    observed jsonb,
    expected jsonb,
    examples text[] not null,
    checked_at timestamptz not null default now()
);

-- Append-only: one row a gate and judgement; rows of one judgement share judged_at.
create table if not exists ops.gate_results (
    gate_result_id bigint generated always as identity primary key,
    mlflow_run_id text not null,
    model_version text,
    use_case text not null,
    as_of date not null,
    gate text not null,
    passed boolean not null,
    observed double precision,
    threshold double precision,
    detail text not null,
    judged_at timestamptz not null default now()
);
do $$
begin
    -- a table of an earlier form, which kept the last judgement only
    if not exists (select from information_schema.columns
                   where table_schema = 'ops' and table_name = 'gate_results'
                     and column_name = 'gate_result_id') then
        alter table ops.gate_results drop constraint gate_results_pkey;
        alter table ops.gate_results
            add column gate_result_id bigint generated always as identity primary key,
            add column model_version text;
    end if;
end $$;

-- Append-only: each decision on who is champion. Of a promotion and of a rollback, to_version is the
-- champion from then on; of a rejection, what was asked for and did not come. The newest move, not
-- MLflow's alias, says which version scores. mlflow_run_id made to_version.
create table if not exists ops.promotions (
    promotion_id bigint generated always as identity primary key,
    use_case text not null,
    as_of date,
    from_version text,
    to_version text not null,
    mlflow_run_id text not null,
    reason text not null,
    promoted_at timestamptz not null default now()
);
alter table ops.promotions
    alter column as_of drop not null,
    add column if not exists action text not null default 'promotion'
        check (action in ('promotion', 'rollback', 'rejection')),
    add column if not exists actor text not null default 'gates'
        check (actor in ('gates', 'person', 'approval')),
    add column if not exists person text check ((person is null) = (actor = 'gates')),
    add column if not exists gate_result_ids bigint[] not null default '{}',
    add column if not exists despite_gates boolean not null default false;

create or replace function ops.refuse_change()
returns trigger
language plpgsql
as $$
begin
    raise exception 'ops.% is append-only: % is refused', tg_table_name, tg_op
        using errcode = 'insufficient_privilege',
              hint = 'What was decided stays; a new decision is a new row.';
end $$;
create or replace trigger promotions_are_append_only
    before update or delete or truncate on ops.promotions
    for each statement execute function ops.refuse_change();
create or replace trigger gate_results_are_append_only
    before update or delete or truncate on ops.gate_results
    for each statement execute function ops.refuse_change();

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

-- One row a rule that stopped a DAG's task, from the night that it first did until a run succeeds
-- for that as_of or a later one. A night that fails again in the same way counts on its open row.
create table if not exists ops.incidents (
    incident_id bigint generated always as identity primary key,
    dag_id text not null,
    task_id text, -- null: the run as a whole
    source text,
    landed_date date,
    column_name text,
    rule text not null,
    message text not null,
    examples text[] not null,
    as_of date,
    last_as_of date,
    last_run_id text not null,
    times_seen integer not null default 1,
    opened_at timestamptz not null default now(),
    last_seen_at timestamptz not null default now(),
    notified_at timestamptz,
    closed_at timestamptz,
    recovery_notified_at timestamptz
);
create unique index if not exists incidents_open_once
    on ops.incidents (dag_id, task_id, source, landed_date, column_name, rule)
    nulls not distinct where closed_at is null;

-- One row a message and channel, written with the incidents that it tells of and sent afterwards:
-- what a kill or a mail server kept from being sent is sent the next time.
create table if not exists ops.alert_messages (
    message_id bigint generated always as identity primary key,
    kind text not null,
    channel text not null check (channel in ('email', 'webhook')),
    incident_ids bigint[] not null,
    subject text not null,
    body text not null,
    written_at timestamptz not null default now(),
    attempts integer not null default 0,
    last_error text,
    sent_at timestamptz
);
alter table ops.alert_messages
    drop constraint if exists alert_messages_kind_check,
    add constraint alert_messages_kind_check
        check (kind in ('failure', 'recovery', 'question'));

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

-- The key under which personal data are pseudonymised on their way into staging, as the two padded
-- keys of HMAC (RFC 2104); migrate() makes it once. Only its owner, nightshift_writer, may read it.
create table if not exists ops.pseudonym_keys (
    is_the_only boolean primary key default true check (is_the_only),
    inner_key bytea not null,
    outer_key bytea not null
);

-- The pseudonym of a value: the first 128 bits of its HMAC-SHA-256, as 32 hex digits. Spaces around
-- it do not count; nothing has no pseudonym. Each parameter is used once, so that the planner puts
-- the expression in the place of the call, and a query looks the key up once, not once a row.
create or replace function ops.pseudonym(value text, inner_key bytea, outer_key bytea)
returns text
language sql stable parallel safe
return left(
    encode(
        sha256(outer_key || sha256(inner_key || convert_to(nullif(trim(value), ''), 'UTF8'))), 'hex'
    ),
    32
);

-- The same for readers, who know their own ids and not the key.
create or replace function predictions.pseudonym(value text)
returns text
language sql stable strict parallel safe
security definer set search_path = pg_catalog, pg_temp
return (select ops.pseudonym(value, inner_key, outer_key) from ops.pseudonym_keys);
revoke execute on function predictions.pseudonym(text) from public;

-- One row an erasure of a person: its certificate. It names neither the person nor the pseudonym.
-- What a killed erasure had removed is counted in its own row, which is never completed.
create table if not exists ops.erasures (
    erasure_id bigint generated always as identity primary key,
    requested_at timestamptz not null default clock_timestamp(),
    completed_at timestamptz,
    removed jsonb not null default '{}',
    not_reached text[] not null default '{}',
    models_to_retrain text[] not null default '{}'
);

-- Before the first publication a reader shall hear that there is no such table, not that it may not
-- look. In a Postgres of the user's own the role may not be there yet.
do $$
begin
    if exists (select from pg_roles where rolname = 'nightshift_reader') then
        grant usage on schema predictions to nightshift_reader;
        grant execute on function predictions.pseudonym(text) to nightshift_reader;
    end if;
end $$;
