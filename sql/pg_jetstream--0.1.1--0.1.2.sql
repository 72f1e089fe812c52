-- Written by `lab/run upgrade-script` from migrations/ and sql/. Do not edit.

-- DDL from 0.1.1 to 0.1.2. Functions, views, comments and rights come from sql/.
