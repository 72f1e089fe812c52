-- The extension, and a way to look at errors: SQLSTATE, message, hint and constraint, without line numbers.
-- Whether this database is served depends on the server; here it only matters that statements answer.
set client_min_messages = error;
create extension pg_jetstream;
reset client_min_messages;
\pset format unaligned
\pset tuples_only on
select jetstream.pause();
create function failure(statement text) returns text
language plpgsql as $$
declare
    code text; message text; hint text; violated text;
begin
    execute statement;
    return 'accepted';
exception when others then
    get stacked diagnostics code = returned_sqlstate, message = message_text, hint = pg_exception_hint,
        violated = constraint_name;
    return concat_ws(E'\n    ', code || ': ' || message, nullif(hint, ''), nullif(violated, ''));
end $$;
select failure('select 1/0');
select failure('select 1');
