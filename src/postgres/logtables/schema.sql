-- The log tables of walcast: what every published table's rows were before and after each change, so that a hub whose
-- replication slot is gone can deliver what it had not read. Everything lives in the schema walcast and runs with the
-- rights of whoever installs it; application roles need no right on it.

CREATE SCHEMA IF NOT EXISTS walcast;

-- One row: which publication is protected, which leaf is being written, how large a leaf gets before the next is used.
CREATE TABLE IF NOT EXISTS walcast.settings (
    only_row bool PRIMARY KEY DEFAULT true CHECK (only_row),
    publication name NOT NULL,
    leaf int2 NOT NULL DEFAULT 0,
    leaf_bytes int8 NOT NULL DEFAULT 67108864
);

-- Orders everything: rows of a transaction, transactions with conflicting rows, and shapes of tables among them.
CREATE SEQUENCE IF NOT EXISTS walcast.ids CACHE 1;

CREATE TABLE IF NOT EXISTS walcast.log (
    id int8 NOT NULL,
    xid xid8 NOT NULL,
    at timestamptz NOT NULL,
    relid oid NOT NULL,
    leaf int2 NOT NULL,
    op "char" NOT NULL,
    old_ctid tid,
    new_ctid tid,
    old_row text,
    new_row text
) PARTITION BY LIST (leaf);
CREATE TABLE IF NOT EXISTS walcast.log_0 PARTITION OF walcast.log FOR VALUES IN (0);
CREATE TABLE IF NOT EXISTS walcast.log_1 PARTITION OF walcast.log FOR VALUES IN (1);
CREATE TABLE IF NOT EXISTS walcast.log_2 PARTITION OF walcast.log FOR VALUES IN (2);

-- The shape of a table from an id on; captured tells whether its changes are logged from there.
CREATE TABLE IF NOT EXISTS walcast.shapes (
    id int8 PRIMARY KEY DEFAULT nextval('walcast.ids'),
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    relid oid NOT NULL,
    created bool NOT NULL,
    captured bool NOT NULL,
    shape jsonb NOT NULL
);

-- Makes the trigger function write into a leaf. A function that names its leaf costs nothing per row.
CREATE OR REPLACE FUNCTION walcast.write_to(leaf int2) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $write_to$
BEGIN
    EXECUTE format($define$
        CREATE OR REPLACE FUNCTION walcast.capture() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, MDY' SET timezone = 'UTC'
        SET intervalstyle = 'postgres' SET bytea_output = 'hex' SET extra_float_digits = 1 SET lc_monetary = 'C'
        AS $capture$
        BEGIN
            IF TG_OP = 'INSERT' THEN
                INSERT INTO walcast.log_%1$s VALUES (nextval('walcast.ids'), pg_current_xact_id(), clock_timestamp(),
                    TG_RELID, %1$s, 'I', NULL, NEW.ctid, NULL, NEW::text);
            ELSIF TG_OP = 'UPDATE' THEN
                INSERT INTO walcast.log_%1$s VALUES (nextval('walcast.ids'), pg_current_xact_id(), clock_timestamp(),
                    TG_RELID, %1$s, 'U', OLD.ctid, NEW.ctid, OLD::text, NEW::text);
            ELSIF TG_OP = 'DELETE' THEN
                INSERT INTO walcast.log_%1$s VALUES (nextval('walcast.ids'), pg_current_xact_id(), clock_timestamp(),
                    TG_RELID, %1$s, 'D', OLD.ctid, NULL, OLD::text, NULL);
            ELSE
                INSERT INTO walcast.log_%1$s VALUES (nextval('walcast.ids'), pg_current_xact_id(), clock_timestamp(),
                    TG_RELID, %1$s, 'T', NULL, NULL, NULL, NULL);
            END IF;
            RETURN NULL;
        END $capture$ $define$, leaf);
    REVOKE EXECUTE ON FUNCTION walcast.capture() FROM PUBLIC;
END $write_to$;

-- The row filter that the publication has for a table: that of the table as which its rows are published, which is the
-- topmost published one with publish_via_partition_root. Publishing the schema, or all tables, overrides filters. Constants
-- are printed under the settings that logged rows are printed under.
CREATE OR REPLACE FUNCTION walcast.filter_of(relation oid) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, MDY' SET timezone = 'UTC' SET quote_all_identifiers = off
SET intervalstyle = 'postgres' SET bytea_output = 'hex' SET extra_float_digits = 1 SET lc_monetary = 'C' AS $filter$
DECLARE
    filter text;
BEGIN
    IF current_setting('server_version_num')::int4 >= 150000 THEN
        EXECUTE '
            WITH publication AS (SELECT p.oid, p.puballtables, p.pubviaroot FROM walcast.settings s
                                 JOIN pg_publication p ON p.pubname = s.publication),
            named AS (
                SELECT r.prqual, a.relid, s.pnnspid IS NOT NULL AS by_schema
                FROM publication p
                CROSS JOIN (SELECT $1 AS relid, 0 AS height
                            UNION SELECT * FROM pg_partition_ancestors($1) WITH ORDINALITY WHERE relid <> $1) a
                JOIN pg_class c ON c.oid = a.relid
                LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = a.relid
                LEFT JOIN pg_publication_namespace s ON s.pnpubid = p.oid AND s.pnnspid = c.relnamespace
                WHERE NOT p.puballtables AND CASE WHEN p.pubviaroot THEN r.oid IS NOT NULL OR s.oid IS NOT NULL
                                                  ELSE a.height = 0 END
                ORDER BY a.height DESC LIMIT 1)
            SELECT pg_get_expr(prqual, relid) FROM named WHERE NOT by_schema' INTO filter USING relation;
    END IF;
    RETURN filter;
END $filter$;

-- Whether the publication publishes a table's rows, and whether it does so since the running transaction: then each way in
-- which it does has something in it that is new, and what was not logged before was not published either. A partition is
-- published with what it is attached to.
CREATE OR REPLACE FUNCTION walcast.ways(relation oid, OUT published bool, OUT is_new bool)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $ways$
DECLARE
    own text := coalesce(pg_current_xact_id_if_assigned()::xid::text, '');
    schemas text := 'SELECT NULL::oid, NULL::oid, false WHERE false';
BEGIN
    IF current_setting('server_version_num')::int4 >= 150000 THEN
        schemas := 'SELECT n.pnpubid, n.pnnspid, n.xmin::text = $2 FROM pg_publication_namespace n';
    END IF;
    EXECUTE format('
        WITH RECURSIVE publication AS (SELECT p.oid, p.puballtables FROM walcast.settings s
                                       JOIN pg_publication p ON p.pubname = s.publication),
        upwards(relid, is_new) AS (
            SELECT $1, false
            UNION ALL
            SELECT i.inhparent, u.is_new OR i.xmin::text = $2 FROM upwards u
            JOIN pg_inherits i ON i.inhrelid = u.relid JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition),
        schemas(publication, schema, is_new) AS (%s),
        ways(is_new) AS (
            SELECT false FROM publication p WHERE p.puballtables
            UNION ALL
            SELECT u.is_new OR r.xmin::text = $2 FROM publication p
            JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN upwards u ON u.relid = r.prrelid
            UNION ALL
            SELECT u.is_new OR s.is_new FROM publication p JOIN schemas s ON s.publication = p.oid
            JOIN pg_class c ON c.relnamespace = s.schema JOIN upwards u ON u.relid = c.oid)
        SELECT count(*) > 0, coalesce(bool_and(is_new), false) FROM ways', schemas)
        INTO published, is_new USING relation, own;
END $ways$;

-- What replay must know of a table, as it is now. While the publication is gone nothing is taken for unpublished: it may be
-- on its way back.
CREATE OR REPLACE FUNCTION walcast.shape_of(relation oid) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $shape$
    SELECT jsonb_build_object('schema', n.nspname, 'table', c.relname, 'identity', c.relreplident,
        'root', pg_partition_root(c.oid)::oid::int8, 'filter', walcast.filter_of(c.oid),
        'published', coalesce((SELECT (c.relkind = 'r' OR p.pubviaroot) AND c.relpersistence = 'p'
                                      AND (SELECT w.published FROM walcast.ways(c.oid) w)
                               FROM walcast.settings s JOIN pg_publication p ON p.pubname = s.publication), true),
        'columns', (SELECT coalesce(jsonb_agg(jsonb_build_object('name', a.attname, 'type', a.atttypid::int8,
                'type_schema', q.nspname, 'type_name', y.typname, 'modifier', a.atttypmod,
                'generated', a.attgenerated,
                'collation', (SELECT format('%I.%I', m.nspname, l.collname) FROM pg_collation l
                              JOIN pg_namespace m ON m.oid = l.collnamespace
                              WHERE l.oid = a.attcollation AND l.collname <> 'default'),
                'key', c.relreplident = 'f' OR coalesce(a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]), false))
                ORDER BY a.attnum), '[]')
            FROM pg_attribute a
            -- Of a domain the stream names the base type, under the domain's OID.
            JOIN LATERAL (WITH RECURSIVE base AS (
                    SELECT t.typname, t.typnamespace, t.typtype, t.typbasetype FROM pg_type t WHERE t.oid = a.atttypid
                    UNION ALL
                    SELECT t.typname, t.typnamespace, t.typtype, t.typbasetype
                    FROM base JOIN pg_type t ON t.oid = base.typbasetype WHERE base.typtype = 'd')
                SELECT * FROM base WHERE typtype <> 'd') y ON true
            JOIN pg_namespace q ON q.oid = y.typnamespace
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped))
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_index i ON i.indrelid = c.oid
        AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END
    WHERE c.oid = relation
$shape$;

-- Whether the triggers of a table are there and fire always. A partitioned table that is published under its own name has
-- one for TRUNCATE only: its rows are its partitions'.
CREATE OR REPLACE FUNCTION walcast.is_captured(relation oid) RETURNS bool
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $captured$
    SELECT count(*) = CASE WHEN EXISTS (SELECT FROM pg_class c WHERE c.oid = relation AND c.relkind = 'p') THEN 1 ELSE 2 END
           AND bool_and(t.tgenabled = 'A') FROM pg_trigger t
    WHERE t.tgrelid = relation AND t.tgname IN ('!walcast', '!walcast_truncate')
      AND t.tgfoid = (SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                      WHERE n.nspname = 'walcast' AND p.proname = 'capture')
$captured$;

-- As pg_partition_tree(), which locks every partition to the end of the transaction: a command would wait for whoever holds
-- another table, and two of them for each other. The catalogue is read instead, which says what has been committed up to now
-- in READ COMMITTED only.
CREATE OR REPLACE FUNCTION walcast.tree(relation oid) RETURNS SETOF oid
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $tree$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN QUERY SELECT t.relid::oid FROM pg_partition_tree(relation) t;
        RETURN;
    END IF;
    RETURN QUERY
        WITH RECURSIVE tree(relid) AS (
            SELECT c.oid FROM pg_class c WHERE c.oid = relation AND (c.relkind = 'p' OR c.relispartition)
            UNION ALL
            SELECT i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.relid AND NOT i.inhdetachpending
            JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition)
        SELECT t.relid FROM tree t;
END $tree$;

-- The tables whose rows the publication publishes, partitions instead of partitioned tables; and the partitioned tables
-- under whose names it publishes them, since only a TRUNCATE of those is published then. Without a lock on any of them, as above:
-- from PostgreSQL 16 on pg_publication_tables opens each table that has no column list.
CREATE OR REPLACE FUNCTION walcast.published() RETURNS SETOF oid
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET jit = off AS $published$
DECLARE
    schemas text := 'SELECT NULL::oid WHERE false';
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN QUERY
            WITH named AS (
                SELECT c.oid FROM walcast.settings s
                JOIN pg_publication_tables t ON t.pubname = s.publication
                JOIN pg_namespace n ON n.nspname = t.schemaname
                JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
                WHERE n.nspname <> 'walcast')
            SELECT m.oid FROM named m JOIN pg_class c ON c.oid = m.oid AND c.relkind IN ('r', 'p')
            UNION
            SELECT p.relid::oid FROM named m, pg_partition_tree(m.oid) p JOIN pg_class c ON c.oid = p.relid
            WHERE p.isleaf AND c.relkind = 'r';
        RETURN;
    END IF;
    IF current_setting('server_version_num')::int4 >= 150000 THEN
        schemas := 'SELECT n.pnnspid FROM pub JOIN pg_publication_namespace n ON n.pnpubid = pub.oid';
    END IF;
    RETURN QUERY EXECUTE format('
        WITH RECURSIVE pub AS (SELECT p.oid, p.puballtables, p.pubviaroot FROM walcast.settings s
                               JOIN pg_publication p ON p.pubname = s.publication),
        publishable AS (SELECT c.oid, c.relkind, c.relispartition, c.relnamespace FROM pg_class c
                        WHERE c.relkind IN (''r'', ''p'') AND c.relpersistence = ''p'' AND c.oid >= 16384),
        schemas(oid) AS (%s),
        named(oid) AS (
            SELECT r.prrelid FROM pub JOIN pg_publication_rel r ON r.prpubid = pub.oid
            UNION
            SELECT c.oid FROM schemas s JOIN publishable c ON c.relnamespace = s.oid
            UNION
            SELECT c.oid FROM pub JOIN publishable c ON pub.puballtables
            WHERE CASE WHEN pub.pubviaroot THEN NOT c.relispartition ELSE c.relkind = ''r'' END),
        below(oid) AS (
            SELECT i.inhrelid FROM named n JOIN pg_inherits i ON i.inhparent = n.oid AND NOT i.inhdetachpending
            JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition
            UNION
            SELECT i.inhrelid FROM below b JOIN pg_inherits i ON i.inhparent = b.oid AND NOT i.inhdetachpending
            JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition)
        SELECT c.oid FROM pub CROSS JOIN (SELECT n.oid, true AS is_named FROM named n UNION SELECT b.oid, false FROM below b) x
        JOIN pg_class c ON c.oid = x.oid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE (c.relkind = ''r''
               OR c.relkind = ''p'' AND pub.pubviaroot AND x.is_named AND x.oid NOT IN (SELECT b.oid FROM below b))
          AND n.nspname <> ''walcast''
        GROUP BY c.oid', schemas);
END $published$;

-- Notes the shape of a table if it is another one than the last noted, or if capturing began or ended. A shape that was
-- not noted by the command that changed it comes too late for the rows logged since: it counts as a time without capture.
CREATE OR REPLACE FUNCTION walcast.note(relation oid, created bool) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $note$
DECLARE
    shape_now jsonb := walcast.shape_of(relation);
    captured_now bool := walcast.is_captured(relation);
    last walcast.shapes;
BEGIN
    SELECT * INTO last FROM walcast.shapes s WHERE s.relid = relation ORDER BY s.id DESC LIMIT 1;
    -- ALTER PUBLICATION lets others write. Their rows would get ids behind the one of the new shape and be committed before it.
    IF last.captured AND (last.shape ->> 'filter', last.shape ->> 'published')
                         IS DISTINCT FROM (shape_now ->> 'filter', shape_now ->> 'published') THEN
        EXECUTE (SELECT format('LOCK TABLE ONLY %I.%I IN SHARE ROW EXCLUSIVE MODE', n.nspname, c.relname)
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation);
    END IF;
    IF last.captured AND last.shape <> shape_now AND current_setting('walcast.following', true) IS DISTINCT FROM 'on' THEN
        INSERT INTO walcast.shapes (relid, created, captured, shape) VALUES (relation, false, false, last.shape);
    END IF;
    IF last.id IS NULL AND captured_now OR last.shape <> shape_now OR last.captured <> captured_now THEN
        INSERT INTO walcast.shapes (relid, created, captured, shape)
        VALUES (relation, note.created AND last.id IS NULL, captured_now, shape_now);
    END IF;
END $note$;

-- Begins to capture one table. Triggers fire in the order of their names; these come first.
CREATE OR REPLACE FUNCTION walcast.protect(relation oid, created bool DEFAULT false) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $protect$
DECLARE
    quoted text;
BEGIN
    -- Not in the function's own settings: only a superuser may put a parameter there that no module defines.
    PERFORM set_config('walcast.protecting', 'on', true);
    SELECT format('%I.%I', n.nspname, c.relname) INTO quoted
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation;
    EXECUTE format('LOCK TABLE ONLY %s IN SHARE ROW EXCLUSIVE MODE', quoted);
    IF EXISTS (SELECT FROM pg_class c WHERE c.oid = relation AND c.relkind = 'r') THEN
        EXECUTE format('CREATE OR REPLACE TRIGGER "!walcast" AFTER INSERT OR UPDATE OR DELETE ON %s
                        FOR EACH ROW EXECUTE FUNCTION walcast.capture()', quoted);
        EXECUTE format('ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER "!walcast"', quoted);
    END IF;
    EXECUTE format('CREATE OR REPLACE TRIGGER "!walcast_truncate" AFTER TRUNCATE ON %s
                    FOR EACH STATEMENT EXECUTE FUNCTION walcast.capture()', quoted);
    EXECUTE format('ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER "!walcast_truncate"', quoted);
    PERFORM walcast.note(relation, created);
    PERFORM set_config('walcast.protecting', 'off', true);
END $protect$;

-- Logs the rows of a table that was created with them.
CREATE OR REPLACE FUNCTION walcast.backfill(relation oid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, MDY' SET timezone = 'UTC'
SET intervalstyle = 'postgres' SET bytea_output = 'hex' SET extra_float_digits = 1 SET lc_monetary = 'C'
AS $backfill$
DECLARE
    leaf int2 := (SELECT s.leaf FROM walcast.settings s);
    quoted text := (SELECT format('%I.%I', n.nspname, c.relname)
                    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation);
BEGIN
    EXECUTE format('INSERT INTO walcast.log_%s SELECT nextval(''walcast.ids''), pg_current_xact_id(), clock_timestamp(),
        %s, %s, ''I'', NULL, t.ctid, NULL, t::text FROM ONLY %s t', leaf, relation, leaf, quoted);
END $backfill$;

-- Locks the tables that a command makes published or gives another filter, all of them before the first is noted: clients
-- that write into several wait for one another's locks and for these, and where that is a deadlock it is this side that can
-- let go and try again.
CREATE OR REPLACE FUNCTION walcast.lock_changed() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $lock_changed$
DECLARE
    tables text;
BEGIN
    FOR attempt IN 1..20 LOOP
        BEGIN
            SELECT string_agg(format('ONLY %I.%I', n.nspname, c.relname), ', ' ORDER BY c.oid) INTO tables
            FROM (SELECT p.oid FROM walcast.published() p(oid)
                  WHERE NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = p.oid AND t.tgname = '!walcast_truncate')
                  UNION
                  SELECT last.relid
                  FROM (SELECT DISTINCT ON (s.relid) s.* FROM walcast.shapes s ORDER BY s.relid, s.id DESC) last
                  WHERE last.captured AND last.shape ->> 'filter' IS DISTINCT FROM walcast.filter_of(last.relid)) changed
            JOIN pg_class c ON c.oid = changed.oid JOIN pg_namespace n ON n.oid = c.relnamespace;
            IF tables IS NOT NULL THEN
                EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', tables);
            END IF;
            RETURN;
        EXCEPTION WHEN deadlock_detected THEN
            IF attempt = 20 THEN
                RAISE;
            END IF;
        END;
    END LOOP;
END $lock_changed$;

-- What a command changed that could not be followed: the log does not say how to read the rows that come now.
CREATE OR REPLACE FUNCTION walcast.note_failure() RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $note_failure$
    INSERT INTO walcast.shapes (relid, created, captured, shape)
    SELECT last.relid, false, false, last.shape
    FROM (SELECT DISTINCT ON (s.relid) s.* FROM walcast.shapes s ORDER BY s.relid, s.id DESC) last
    JOIN pg_class c ON c.oid = last.relid
    WHERE last.captured AND last.shape IS DISTINCT FROM walcast.shape_of(last.relid)
$note_failure$;

-- Keeps shapes and triggers in step with what a DDL command did. An error here must not fail the command: it is a
-- warning, and the hub's audit raises the alarm.
-- Catalogue views look so expensive that each command would wait for them to be compiled.
CREATE OR REPLACE FUNCTION walcast.on_ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off AS $on_ddl$
DECLARE
    command record;
    relation oid;
BEGIN
    IF current_setting('walcast.protecting', true) = 'on' THEN
        RETURN; -- the command is one of protect()'s
    END IF;
    PERFORM set_config('walcast.following', 'on', true);
    IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() d WHERE d.classid <> 'pg_class'::regclass) THEN
        PERFORM walcast.lock_changed();
    END IF;
    FOR command IN SELECT * FROM pg_event_trigger_ddl_commands() LOOP
        CONTINUE WHEN command.schema_name IN ('walcast', 'pg_temp');
        FOR relation IN
            SELECT p.oid FROM walcast.published() p(oid)
            WHERE CASE WHEN command.classid = 'pg_class'::regclass
                       THEN p.oid = command.objid OR p.oid IN (SELECT walcast.tree(command.objid))
                       ELSE true END
            UNION
            -- A partition that was detached is no longer in the tree that the command names.
            SELECT s.relid FROM walcast.shapes s JOIN pg_class c ON c.oid = s.relid
            WHERE CASE WHEN command.classid = 'pg_class'::regclass
                       THEN s.relid = command.objid OR s.relid IN (SELECT walcast.tree(command.objid))
                            OR (s.shape ->> 'root')::oid = pg_partition_root(command.objid)::oid
                       ELSE true END
        LOOP
            IF NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = relation AND t.tgname = '!walcast_truncate') THEN
                PERFORM walcast.protect(relation, command.command_tag LIKE 'CREATE TABLE%' AND command.objid = relation
                                                  OR command.command_tag = 'SELECT INTO'
                                                  OR (SELECT w.is_new FROM walcast.ways(relation) w));
                IF command.command_tag IN ('CREATE TABLE AS', 'SELECT INTO') THEN
                    PERFORM walcast.backfill(relation); -- its rows were there before its triggers
                END IF;
            ELSE
                PERFORM walcast.note(relation, false);
            END IF;
        END LOOP;
    END LOOP;
    IF TG_TAG = 'ALTER PUBLICATION' THEN -- what leaves one is in no list of commands
        PERFORM walcast.note(c.oid, false) FROM pg_class c WHERE c.oid IN (SELECT s.relid FROM walcast.shapes s);
    END IF;
    PERFORM set_config('walcast.following', 'off', true);
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'walcast: the log tables do not follow this command: %', SQLERRM;
    BEGIN
        PERFORM walcast.note_failure();
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'walcast: and that could not be noted: %', SQLERRM;
    END;
END $on_ddl$;

-- Empties the leaves of which the journal has everything, and begins a new leaf when the current one is large. Whoever
-- writes into a leaf holds a lock that conflicts with the one taken here, so that what the check cannot see yet cannot
-- be emptied either. Returns how many leaves were emptied.
CREATE OR REPLACE FUNCTION walcast.prune(upto pg_snapshot) RETURNS int4
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $prune$
DECLARE
    settings walcast.settings;
    emptied int4 := 0;
    needed bool;
    size int8;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'walcast.prune must look with a new snapshot at each step: use READ COMMITTED';
    END IF;
    SELECT * INTO settings FROM walcast.settings FOR UPDATE;
    FOR leaf IN 0..2 LOOP
        CONTINUE WHEN leaf = settings.leaf OR pg_relation_size(format('walcast.log_%s', leaf)::regclass) = 0;
        BEGIN
            EXECUTE format('SELECT EXISTS (SELECT FROM walcast.log_%s WHERE NOT pg_visible_in_snapshot(xid, $1))', leaf)
                INTO needed USING upto;
            CONTINUE WHEN needed;
            EXECUTE format('LOCK TABLE walcast.log_%s IN ACCESS EXCLUSIVE MODE', leaf);
            EXECUTE format('SELECT EXISTS (SELECT FROM walcast.log_%s WHERE NOT pg_visible_in_snapshot(xid, $1))', leaf)
                INTO needed USING upto;
            IF NOT needed THEN
                EXECUTE format('TRUNCATE walcast.log_%s', leaf);
                emptied := emptied + 1;
            END IF;
        EXCEPTION WHEN lock_not_available THEN
            NULL; -- the next time
        END;
    END LOOP;
    size := pg_relation_size(format('walcast.log_%s', settings.leaf)::regclass);
    IF size >= settings.leaf_bytes
       AND pg_relation_size(format('walcast.log_%s', (settings.leaf + 1) % 3)::regclass) = 0 THEN
        settings.leaf := (settings.leaf + 1) % 3;
        PERFORM walcast.write_to(settings.leaf);
    END IF;
    UPDATE walcast.settings s SET leaf = settings.leaf WHERE s.leaf <> settings.leaf;
    RETURN emptied;
END $prune$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA walcast FROM PUBLIC;
