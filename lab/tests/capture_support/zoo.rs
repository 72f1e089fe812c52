//! A table with a column of every type, and rows with difficult values.

/// Type `shape` has the original columns of `zoo`. `beast(n)` returns the n-th row.
pub const ZOO: &str = "
create type mood as enum ('sad', 'ok', 'it''s \"fine\"');
create type pair as (a int, b text);
create table zoo (
    id int primary key, num numeric, f8 float8, f4 float4, raw bytea, txt text, at timestamptz, local timestamp,
    day date, span interval, range int4range, times tstzrange, list int[], texts text[], grid float8[], two pair,
    feel mood, j jsonb, js json, u uuid, net inet, big text, flags bit varying, fixed char(7), \"odd \"\"name\" money, dropped int, yes boolean
);
alter table zoo drop column dropped;
alter table zoo add column small int2 default 7;
create table shape (like zoo);
alter table zoo add column twice int generated always as (id * 2) stored;
create function beast(n int) returns setof shape language sql as $$
    select n, (array['NaN', '12345678901234567890123456789.0123456789012345678901', '-0.00', null, '1e-30'])[n % 5 + 1]::numeric,
        (array['NaN', 'Infinity', '-Infinity', '0.1', '1e-300', '-0'])[n % 6 + 1]::float8,
        (array['0.1', '16777217', 'Infinity'])[n % 3 + 1]::float4, decode(md5(n::text), 'hex'),
        (array['', E'tab\\t\"quote\\\" \\\\ \\u00e4 line\\n', null, repeat('x', 3000)])[n % 4 + 1],
        (array['infinity', '-infinity', '2024-02-29 23:59:59.123456+05:30', '0044-03-15 BC', '1900-01-01'])[n % 5 + 1]::timestamptz,
        (array['infinity', '2024-02-29 23:59:59.999999'])[n % 2 + 1]::timestamp, '2024-01-01'::date + n,
        make_interval(months => n, days => -n, secs => n * 0.1), int4range(n, nullif(n + 5, 7)),
        tstzrange(null, now()), array[n, null, -n], array['a,b', '\"', null, 'NULL', E'\\\\'], '[0:1]={1.5,2.5}'::float8[],
        (n, 'x\"y')::pair, (enum_range(null::mood))[n % 3 + 1], jsonb_build_object('n', n, 'deep', 1e100),
        '{ \"b\": 1,  \"b\": 2.0 }'::json, md5(n::text)::uuid, '10.0.0.0/8'::inet + n,
        (select string_agg(md5(i::text || n), '') from generate_series(1, 300) i), n::bit(9)::varbit,
        'ab', n::numeric::money, n % 2 = 0, n::int2
$$";
