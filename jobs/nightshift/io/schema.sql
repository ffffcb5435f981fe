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

-- From which score on rows were alerted of each night, and why; a night that is run again keeps it.
create table if not exists ops.thresholds (
    threshold_id bigint generated always as identity primary key,
    use_case text not null,
    as_of date not null,
    model_version text not null,
    threshold_version text not null,
    threshold double precision not null,
    previous double precision,
    target jsonb not null,
    reason text not null,
    evidence jsonb not null,
    chosen_at timestamptz not null default now(),
    unique (use_case, threshold_version)
);
create or replace trigger thresholds_are_append_only
    before update or delete or truncate on ops.thresholds
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

-- How its scores are distributed: rows by score, over the deciles of its own scores. dropped_at: since
-- when its rows are no longer kept. made_from: commit, features, training set and marts, for receipts;
-- null where it is from before these were recorded.
alter table ops.publications
    add column if not exists score_edges double precision[],
    add column if not exists score_counts bigint[],
    add column if not exists dropped_at timestamptz,
    add column if not exists made_from jsonb;

-- Append-only: one row a rule and audit; rows of one audit share audited_at. A rule is not applied
-- where there is nothing to compare with, and detail says what is missing.
create table if not exists ops.audit_results (
    audit_result_id bigint generated always as identity primary key,
    publication_id text not null,
    use_case text not null,
    as_of date not null,
    model_version text not null,
    rule text not null,
    outcome text not null check (outcome in ('passed', 'failed', 'not_applied')),
    observed double precision,
    bound double precision,
    detail text not null,
    audited_at timestamptz not null default now()
);
create index if not exists audit_results_publication on ops.audit_results (publication_id);
create or replace trigger audit_results_are_append_only
    before update or delete or truncate on ops.audit_results
    for each statement execute function ops.refuse_change();

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
-- Every run that has met it while it was open, for runs of one DAG may go on at once. What was opened
-- before there was this column has last_run_id alone.
alter table ops.incidents
    add column if not exists run_ids text[] not null default '{}';
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

-- Append-only: each move of a pointer, by a run, or back by a person. The trigger writes it, so that
-- no pointer moves without; a rollback says who and why in settings of its transaction.
create table if not exists ops.pointer_moves (
    pointer_move_id bigint generated always as identity primary key,
    use_case text not null,
    as_of date not null,
    from_publication_id text,
    to_publication_id text not null,
    person text,
    reason text,
    moved_at timestamptz not null default now()
);
create index if not exists pointer_moves_as_of on ops.pointer_moves (use_case, as_of);
create or replace trigger pointer_moves_are_append_only
    before update or delete or truncate on ops.pointer_moves
    for each statement execute function ops.refuse_change();

-- Listeners of the channel nightshift_publications hear of it when the move is committed.
create or replace function predictions.record_pointer_move()
returns trigger
language plpgsql
as $$
begin
    insert into ops.pointer_moves
        (use_case, as_of, from_publication_id, to_publication_id, person, reason)
    values (
        new.use_case, new.as_of,
        case when tg_op = 'UPDATE' then old.publication_id end, new.publication_id,
        nullif(current_setting('nightshift.person', true), ''),
        nullif(current_setting('nightshift.reason', true), '')
    );
    perform pg_notify('nightshift_publications', jsonb_build_object(
        'use_case', new.use_case, 'as_of', new.as_of, 'publication_id', new.publication_id
    )::text);
    return null;
end $$;
create or replace trigger pointer_moves_are_recorded
    after insert or update of publication_id on predictions.pointers
    for each row execute function predictions.record_pointer_move();

-- What readers see: one row a use case and as_of.
create or replace view predictions.publications as
select
    p.use_case, p.as_of, p.publication_id, o.rows, o.model_version, p.moved_at as published_at
from predictions.pointers as p
inner join ops.publications as o using (publication_id);
comment on view predictions.publications is
    'What readers see: one row a use case and as_of. NOTIFY nightshift_publications tells of changes.';
comment on column predictions.publications.use_case is 'Names the views: predictions.<use_case>.';
comment on column predictions.publications.as_of is 'The cut-off that its rows are predicted for.';
comment on column predictions.publications.publication_id is 'As in the rows of the views.';
comment on column predictions.publications.rows is 'How many rows the views have of it.';
comment on column predictions.publications.model_version is
    'Version of the registered model that is named as the use case.';
comment on column predictions.publications.published_at is
    'Since when readers see it. Of a rollback, when it was rolled back.';

-- One row a use case and date on which a challenger scored beside the champion.
create table if not exists monitoring.challenges (
    use_case text not null,
    as_of date not null,
    champion_version text not null,
    challenger_version text not null,
    rows bigint not null,
    agreement double precision not null,
    rank_correlation double precision,
    mean_difference double precision not null,
    largest_difference double precision not null,
    challenged_at timestamptz not null default now(),
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

-- What each rule of a published night found, measured once its labels are mature; threshold is the
-- rule of all rows from the night's threshold on, decision of all that did not pass.
create table if not exists monitoring.rule_quality (
    use_case text not null,
    as_of date not null,
    rule text not null,
    rows bigint not null,
    hits bigint not null,
    found bigint not null,
    positives bigint not null,
    precision double precision,
    recall double precision,
    measured_at timestamptz not null default now(),
    primary key (use_case, as_of, rule)
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

-- The landed files that an entity's rows of a mart come from, as of a date: an object a file, with the
-- rows' numbers where the mart's key says them (file:row); else each file of the days on which they
-- landed. What was joined to the rows has landed on days of its own (joined_dates): each file of them,
-- of the mart's other sources. null where there is no such mart. Identifiers come from
-- ops.publications.made_from.
create or replace function ops.landed_files_of(source jsonb, entity text, as_of date)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    mart regclass := to_regclass(source ->> 'relation');
    known text;
    found jsonb;
begin
    if mart is null then
        return null;
    end if;
    select string_agg(
        format(
            'select m.%1$I as landed_date, %2$s as row_id, %3$s as is_joined from %4$s as m'
            ' where m.%5$I::text = $1 and m.%6$I < $2 and m.%7$I < $2 and m.%1$I < $2',
            d.landed, case when d.is_joined then 'null' else format('m.%I::text', source ->> 'row_id') end,
            d.is_joined::text, mart, source ->> 'key', source ->> 'event_time', source ->> 'landed_date'
        ),
        ' union all '
    ) into strict known
    from (
        select source ->> 'landed_date' as landed, false as is_joined
        union all
        select j.landed, true from jsonb_array_elements_text(source -> 'joined_dates') as j (landed)
    ) as d;
    execute format(
        $query$
        with numbered as (
            select
                k.landed_date, k.is_joined,
                case when k.row_id ~ '^\d+:\d+$' then split_part(k.row_id, ':', 1)::bigint end as file_id,
                case when k.row_id ~ '^\d+:\d+$' then split_part(k.row_id, ':', 2)::bigint end as row_number
            from (%s) as k
        ),
        grouped as (
            select
                landed_date, is_joined, file_id, count(*) as rows,
                array_agg(row_number order by row_number) filter (where row_number is not null)
                    as row_numbers
            from numbered
            group by landed_date, is_joined, file_id
        )
        select
            jsonb_build_object(
                'rows', coalesce((select sum(g.rows) from grouped as g where not g.is_joined), 0),
                'files', coalesce(jsonb_agg(jsonb_build_object(
                    'file_id', f.file_id, 'path', f.path, 'landed_date', g.landed_date,
                    'sha256', f.sha256, 'loaded_at', f.loaded_at, 'status', f.status,
                    'rows', g.rows, 'row_numbers', g.row_numbers, 'is_joined', g.is_joined
                ) order by g.landed_date, f.path), '[]')
            )
        from grouped as g
        left join ops.landing_files as f
            on f.file_id = g.file_id
            or (
                g.file_id is null and f.landed_date = g.landed_date and f.status = 'loaded'
                and case when g.is_joined then $4 ? f.source else f.source = $3 end
            )
        $query$,
        known
    ) using entity, as_of, source ->> 'landed', source -> 'joined' into found;
    return found;
end $$;

-- The key of another entity that an event has, its terminal's, by the mart that the event is in; null
-- where that is not known any more.
create or replace function ops.key_of_event(source jsonb, event jsonb)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    mart regclass := to_regclass(source ->> 'event_relation');
    found text;
begin
    if mart is null or event is null then
        return null;
    end if;
    execute format(
        'select m.%I::text from %s as m where m.%I = %L', source ->> 'key', mart,
        source ->> 'event_id', event ->> (source ->> 'event_id')
    ) into found;
    return found;
end $$;

-- What the columns are that name a published row, the key first: those before as_of. null where there
-- is no such relation.
create or replace function ops.names_of_rows(relation regclass)
returns name[]
language sql stable
return (
    select array_agg(a.attname order by a.attnum)
    from pg_catalog.pg_attribute as a
    inner join pg_catalog.pg_attribute as d on d.attrelid = a.attrelid and d.attname = 'as_of'
    where a.attrelid = relation and a.attnum > 0 and a.attnum < d.attnum
);

-- The condition on r under which it is a row that is asked for: any of its names is $1, and it has the
-- other names that are given, column → value.
create or replace function ops.is_asked_for(names name[], others jsonb)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    foreign_name text;
    found text;
begin
    select o.key into foreign_name from jsonb_object_keys(others) as o (key)
    where o.key <> all (names) limit 1;
    if foreign_name is not null then
        raise exception 'no column % names a row: the columns are %', foreign_name, names
            using errcode = 'invalid_parameter_value';
    end if;
    select
        format(
            '($1 in (%s)%s)', string_agg(format('r.%I', n), ', '),
            case when others = '{}' then '' else ' or $1 is null' end
        )
        || coalesce((
            select string_agg(format(' and r.%I = %L', o.key, o.value), '') from jsonb_each_text(others) as o
        ), '')
    into found
    from unnest(names) as n;
    return found;
end $$;

-- Where one published row comes from: publication, model and who made it champion, gates, training
-- set, features, landed files, quality of what had landed, code. What lies in the lake or in MLflow is
-- named by path, run and SHA-256.
--
-- entity: any of what names the row in the views, as its key. named: column → value, where that is not
-- enough; '{"product_id": "22423"}'. Of several rows it is the one with the highest score, and others
-- names the rest. as_of: null for the newest date on which readers see a row of it. publication: an
-- id, also of one that readers no longer see; null for the one that they see.
--
-- Of what is not there, missing says why. It reads ops and marts as its owner and tells names of
-- persons who decided: for nightshift_auditor, not for every reader.
drop function if exists predictions.receipt(text, text, date, text);
create or replace function predictions.receipt(
    use_case text, entity text, as_of date default null, publication text default null,
    named jsonb default '{}'
)
returns jsonb
language plpgsql stable
security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    asked_use_case constant text := use_case;
    asked_as_of constant date := as_of;
    asked_names constant jsonb := coalesce(named, '{}');
    o ops.publications;
    d ops.promotions;
    partition regclass;
    key name;
    names name[];
    day date := as_of;
    found jsonb;
    others jsonb := '[]';
    others_count bigint := 0;
    missing text[] := '{}';
    erased bigint;
begin
    if publication is null and day is null then
        select ops.names_of_rows(c.oid) into names
        from pg_class as c
        where
            c.relnamespace = 'predictions'::regnamespace and c.relname = asked_use_case
            and c.relkind = 'v'
            and exists (select from predictions.pointers as p where p.use_case = asked_use_case);
        if names is not null then
            execute format(
                'select max(r.as_of) from predictions.%I as r where %s', asked_use_case,
                ops.is_asked_for(names, asked_names)
            ) using entity into day;
        end if;
        if day is null then
            select max(p.as_of) into day
            from predictions.pointers as p where p.use_case = asked_use_case;
        end if;
    end if;

    select p.* into o
    from ops.publications as p
    where
        p.use_case = asked_use_case
        and p.publication_id = coalesce(publication, (
            select s.publication_id from predictions.pointers as s
            where s.use_case = asked_use_case and s.as_of = day
        ))
        and (asked_as_of is null or p.as_of = asked_as_of);
    if o.publication_id is null then
        return jsonb_build_object(
            'use_case', asked_use_case, 'entity', entity, 'as_of', day, 'publication', null,
            'row', null, 'missing', jsonb_build_array(
                'there is no such publication of ' || asked_use_case
                || coalesce(' for ' || day, '') || coalesce(' with the id ' || publication, '')
            )
        );
    end if;

    partition := to_regclass(
        format('predictions.%I', asked_use_case || '_p_' || o.publication_id)
    );
    if partition is null then
        missing := missing || (
            'the rows of publication ' || o.publication_id || ' are no longer kept'
            || coalesce(', since ' || o.dropped_at::date, '')
        );
    else
        names := ops.names_of_rows(partition);
        key := names[1];
        -- the score is the column after as_of
        execute (
            select format(
                $query$
                with asked as (
                    select
                        to_jsonb(r) as whole,
                        jsonb_build_object(%2$s) as named,
                        row_number() over (order by r.%3$I desc nulls last, %4$s) as place
                    from %1$s as r
                    where %5$s
                )
                select
                    (array_agg(whole) filter (where place = 1))[1],
                    coalesce(jsonb_agg(named order by place) filter (where place between 2 and 101), '[]'),
                    greatest(count(*) - 1, 0)
                from asked
                $query$,
                partition, string_agg(format('%1$L, r.%1$I', n), ', '), s.attname,
                string_agg(format('r.%I', n), ', ' order by array_position(names, n)), ops.is_asked_for(names, asked_names)
            )
            from unnest(names) as n, pg_attribute as s
            where s.attrelid = partition and s.attnum = cardinality(names) + 2
            group by s.attname
        ) using entity into found, others, others_count;
        if found is null then
            select count(*) into erased
            from ops.erasures as e
            where e.completed_at is null or e.completed_at >= o.published_at;
            missing := missing || (
                'publication ' || o.publication_id || ' has no row of this ' || array_to_string(names, ' or ')
                || ': not in the population then'
                || case erased
                    when 0 then ''
                    else ', or erased since: ' || erased || ' erasures began or ended, which name nobody'
                end
            );
        end if;
    end if;

    select p.* into d
    from ops.promotions as p
    where
        p.use_case = asked_use_case and p.to_version = o.model_version
        and p.action <> 'rejection' and p.promoted_at <= o.published_at
    order by p.promotion_id desc
    limit 1;
    if d.promotion_id is null then
        missing := missing || (
            'no decision made version ' || o.model_version || ' champion: it was by MLflow''s alias'
        );
    end if;
    if o.made_from is null then
        missing := missing || (
            'the publication is from before code, features, training set and marts were recorded'
        )::text;
    end if;

    return jsonb_build_object(
        'use_case', asked_use_case,
        'entity', entity,
        'named', asked_names,
        'as_of', o.as_of,
        'row', found,
        'others', jsonb_build_object('rows', others_count, 'first', others),
        'missing', to_jsonb(missing),
        'publication', to_jsonb(o) - '{score_edges,score_counts,made_from}'::text[]
        || jsonb_build_object('is_seen', exists (
            select from predictions.pointers as p where p.publication_id = o.publication_id
        )),
        'made_from', o.made_from,
        'moves', (
            select coalesce(jsonb_agg(to_jsonb(m) order by m.pointer_move_id), '[]')
            from ops.pointer_moves as m
            where o.publication_id in (m.from_publication_id, m.to_publication_id)
        ),
        'audit', (
            select coalesce(jsonb_agg(to_jsonb(a) order by a.audit_result_id), '[]')
            from ops.audit_results as a
            where
                a.publication_id = o.publication_id and a.audited_at = (
                    select max(n.audited_at) from ops.audit_results as n
                    where n.publication_id = o.publication_id and n.audited_at <= o.published_at
                )
        ),
        'decision', case when d.promotion_id is not null then to_jsonb(d) end,
        -- those that the decision rests on, or else the newest judgement of the version
        'gates', (
            select coalesce(jsonb_agg(to_jsonb(g) order by g.gate_result_id), '[]')
            from ops.gate_results as g
            where
                g.gate_result_id = any(d.gate_result_ids)
                or (
                    coalesce(cardinality(d.gate_result_ids), 0) = 0
                    and g.mlflow_run_id = o.mlflow_run_id
                    and g.judged_at = (
                        select max(n.judged_at) from ops.gate_results as n
                        where n.mlflow_run_id = o.mlflow_run_id and n.judged_at <= o.published_at
                    )
                )
        ),
        'sources', (
            select coalesce(jsonb_agg(
                s.source || jsonb_build_object(
                    'value', v.value, 'landed_files', ops.landed_files_of(s.source, v.value, o.as_of)
                )
            ), '[]')
            from jsonb_array_elements(o.made_from -> 'sources') as s (source)
            cross join lateral (
                select case
                    when s.source ->> 'key' = key then coalesce(found ->> key, entity)
                    else coalesce(found ->> (s.source ->> 'key'), ops.key_of_event(s.source, found))
                end as value
            ) as v
        ),
        -- of each table that was checked, the last check before the publication of the newest day
        -- that had landed
        'quality', (
            select coalesce(jsonb_agg(to_jsonb(q) order by q.checked, q.landed_date, q.rule), '[]')
            from ops.quality_results as q
            inner join (
                select distinct on (n.checked) n.checked, n.run_id
                from ops.quality_results as n
                where
                    n.landed_date < o.as_of and n.checked_at <= o.published_at
                    and (
                        o.made_from is null or exists (
                            select
                            from jsonb_array_elements(o.made_from -> 'sources') as s (source)
                            where s.source ->> 'landed' = n.source or s.source -> 'joined' ? n.source
                        )
                    )
                order by n.checked, n.landed_date desc, n.run_id desc
            ) as newest using (checked, run_id)
            where q.landed_date < o.as_of
        )
    );
end $$;
revoke execute on function ops.landed_files_of(jsonb, text, date) from public;
revoke execute on function ops.key_of_event(jsonb, jsonb) from public;
revoke execute on function ops.names_of_rows(regclass) from public;
revoke execute on function ops.is_asked_for(name[], jsonb) from public;
revoke execute on function predictions.record_pointer_move() from public;
revoke execute on function predictions.receipt(text, text, date, text, jsonb) from public;

-- Before the first publication a reader shall hear that there is no such table, not that it may not
-- look. In a Postgres of the user's own the roles may not be there yet.
do $$
begin
    if exists (select from pg_roles where rolname = 'nightshift_reader') then
        grant usage on schema predictions to nightshift_reader;
        grant execute on function predictions.pseudonym(text) to nightshift_reader;
        grant select on predictions.publications to nightshift_reader;
    end if;
    if exists (select from pg_roles where rolname = 'nightshift_auditor') then
        grant usage on schema predictions to nightshift_auditor;
        grant execute on function predictions.pseudonym(text) to nightshift_auditor;
        grant execute on function predictions.receipt(text, text, date, text, jsonb) to nightshift_auditor;
    end if;
end $$;
