-- Operators and functions in the constraints, defaults, views and indexes of all further files are found in pg_catalog and
-- nowhere else; whatever is meant from another schema has its name.
set local search_path = pg_catalog, pg_temp;
