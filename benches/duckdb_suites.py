"""The tables and questions of `against-duckdb`: what each suite is made of, for nobody else to call.

A suite has `tables`, name to SQL that DuckDB makes it by (`None`: a table of TPC-H, from tpchgen-cli; `{n}` stands for its
number of rows), and `queries`, name to SQL."""

LINEITEM = {
    "q6": "SELECT sum(l_extendedprice*l_discount) AS r FROM lineitem WHERE l_shipdate >= DATE '1994-01-01' AND l_shipdate < DATE '1995-01-01' AND l_discount BETWEEN 0.05 AND 0.07 AND l_quantity < 24",
    "q1": "SELECT l_returnflag, l_linestatus, sum(l_quantity) a, sum(l_extendedprice) b, sum(l_extendedprice*(1-l_discount)) c, avg(l_quantity) d, count(*) n FROM lineitem WHERE l_shipdate <= DATE '1998-09-02' GROUP BY l_returnflag, l_linestatus",
    "narrow": "SELECT l_orderkey, l_partkey, l_extendedprice FROM lineitem WHERE l_shipdate BETWEEN DATE '1995-03-01' AND DATE '1995-03-07' AND l_quantity < 5",
    "wide": "SELECT l_orderkey, l_partkey, l_suppkey, l_quantity, l_extendedprice, l_discount, l_shipdate FROM lineitem WHERE l_quantity = 7",
    "half": "SELECT l_orderkey, l_extendedprice FROM lineitem WHERE l_quantity <= 25",
    "string_in": "SELECT l_orderkey, l_shipmode FROM lineitem WHERE l_shipmode IN ('AIR','REG AIR') AND l_shipinstruct = 'DELIVER IN PERSON' AND l_quantity BETWEEN 1 AND 11",
    "like": "SELECT count(*) AS n FROM lineitem WHERE l_comment LIKE '%special%requests%'",
    "point": "SELECT * FROM lineitem WHERE l_orderkey = 30000001",
}

ORDERS = {
    "q4: a quarter by priority": "SELECT o_orderpriority, count(*) n FROM orders WHERE o_orderdate >= DATE '1993-07-01' AND o_orderdate < DATE '1993-10-01' GROUP BY o_orderpriority",
    "q13: NOT LIKE on the comment": "SELECT count(*) n, sum(o_totalprice) s FROM orders WHERE o_comment NOT LIKE '%special%requests%'",
    "orders of each customer (group by 1 M)": "SELECT o_custkey, count(*) n, sum(o_totalprice) s FROM orders GROUP BY o_custkey",
    "one customer": "SELECT * FROM orders WHERE o_custkey = 370",
    "one clerk (high-cardinality text)": "SELECT o_orderkey, o_totalprice FROM orders WHERE o_clerk = 'Clerk#000000951'",
    "100 dearest": "SELECT o_orderkey, o_totalprice, o_orderdate FROM orders ORDER BY o_totalprice DESC, o_orderkey LIMIT 100",
    "dear and urgent, or old": "SELECT o_orderkey FROM orders WHERE (o_totalprice > 400000 AND o_orderpriority = '1-URGENT') OR o_orderdate < DATE '1992-01-08'",
    "revenue by year": "SELECT extract(year FROM o_orderdate) y, o_orderstatus, sum(o_totalprice) s FROM orders GROUP BY extract(year FROM o_orderdate), o_orderstatus",
}

PART = {
    "q2: type LIKE '%BRASS'": "SELECT p_partkey, p_mfgr FROM part WHERE p_size = 15 AND p_type LIKE '%BRASS'",
    "q16: sizes of kinds": "SELECT p_brand, p_type, p_size, count(*) n FROM part WHERE p_brand <> 'Brand#45' AND p_type NOT LIKE 'MEDIUM POLISHED%' AND p_size IN (49, 14, 23, 45, 19, 3, 36, 9) GROUP BY p_brand, p_type, p_size",
    "q9: name contains green": "SELECT p_partkey FROM part WHERE p_name LIKE '%green%'",
    "q19: brands and containers": "SELECT p_partkey FROM part WHERE (p_brand = 'Brand#12' AND p_container IN ('SM CASE', 'SM BOX', 'SM PACK', 'SM PKG') AND p_size BETWEEN 1 AND 5) OR (p_brand = 'Brand#23' AND p_container IN ('MED BAG', 'MED BOX', 'MED PKG', 'MED PACK') AND p_size BETWEEN 1 AND 10)",
    "highest price by brand": "SELECT p_brand, max(p_retailprice) m, min(p_name) f FROM part GROUP BY p_brand",
}

# Readings of devices, nearly in the order of time: timestamps, floats with and without decimals, nulls, text of few and of many
# values, a hash, a boolean.
EVENTS = """CREATE TABLE events AS SELECT
    i::BIGINT AS id,
    TIMESTAMP '2025-01-01' + to_microseconds((i * 15770 + hash(i) % 900000)::BIGINT) AS happened,
    (hash(i * 7 + 1) % 5000)::INTEGER AS device,
    (hash(i * 7 + 2) % 1000000)::BIGINT AS account,
    CASE WHEN hash(i * 7 + 3) % 20 = 0 THEN NULL ELSE round(20 + 10 * sin(i / 100000.0) + (hash(i * 7 + 4) % 1000) / 500.0, 2) END AS temperature,
    (hash(i * 7 + 5) % 16777216)::DOUBLE / 16777216.0 AS load,
    (10 ** (hash(i * 7 + 6) % 4000 / 1000.0))::INTEGER AS took_ms,
    CASE WHEN hash(i * 7 + 7) % 10 = 0 THEN NULL ELSE ((hash(i * 7 + 8) % 10000000)::BIGINT / 100.0)::DECIMAL(12, 2) END AS amount,
    hash(i * 7 + 9) % 3 = 0 AS ok,
    CASE hash(i * 7 + 10) % 32 WHEN 0 THEN NULL WHEN 1 THEN 'error' WHEN 2 THEN 'warning' WHEN 3 THEN 'fatal' WHEN 4 THEN 'debug' ELSE 'info' END AS level,
    'https://' || ['shop', 'cdn', 'api', 'www'][1 + (hash(i * 7 + 11) % 4)::INTEGER] || '.example.org/item/' || (hash(i * 7 + 12) % 3000000) || '?page=' || (hash(i * 7 + 13) % 20) AS url,
    printf('%016x', hash(i * 7 + 14)) AS session
FROM range({n}) AS t(i)"""

IN_INTEGERS = ", ".join(str(k * 983 % 1000000) for k in range(1000))
IN_TEXTS = ", ".join(f"'https://shop.example.org/item/{k * 2971}?page={k % 20}'" for k in range(1000))

EVENTS_QUERIES = {
    "an hour of timestamps": "SELECT count(*) n, avg(temperature) t, max(load) l FROM events WHERE happened >= TIMESTAMP '2025-01-01 03:00:00' AND happened < TIMESTAMP '2025-01-01 04:00:00'",
    "floats: two ranges": "SELECT count(*) n, sum(load) s FROM events WHERE temperature > 29.5 AND load < 0.1",
    "floats: average and extremes": "SELECT avg(temperature) a, min(temperature) b, max(load) c, sum(load) d FROM events",
    "text of few values: group by": "SELECT level, count(*) n, avg(took_ms) a, max(temperature) m FROM events GROUP BY level",
    "text of many values: equals": "SELECT id, happened, url FROM events WHERE session = '0123456789abcdef'",
    "text: prefix": "SELECT count(*) n FROM events WHERE url LIKE 'https://api.example.org/item/77%'",
    "text: suffix": "SELECT count(*) n FROM events WHERE url LIKE '%4?page=7'",
    "text: contains": "SELECT count(*) n FROM events WHERE url LIKE '%item/1234%'",
    "IS NULL and IS NOT NULL": "SELECT count(*) n FROM events WHERE temperature IS NULL AND amount IS NOT NULL AND level IS NULL",
    "IN 1,000 integers": "SELECT count(*) n, sum(took_ms) s FROM events WHERE account IN (" + IN_INTEGERS + ")",
    "IN 1,000 texts": "SELECT id FROM events WHERE url IN (" + IN_TEXTS + ")",
    "OR and NOT": "SELECT count(*) n FROM events WHERE NOT (level = 'info' OR took_ms < 100) OR (device = 17 AND ok)",
    "CASE": "SELECT sum(CASE WHEN ok THEN amount ELSE 0 END) a, sum(CASE WHEN took_ms > 1000 THEN 1 ELSE 0 END) b FROM events",
    "arithmetic in the predicate": "SELECT count(*) n FROM events WHERE took_ms * 2 + device > 14000",
    "arithmetic on floats": "SELECT sum(temperature * load) s FROM events WHERE load * 2 < temperature / 15",
    "group by 10": "SELECT device % 10 g, count(*) n, sum(amount) s FROM events GROUP BY device % 10",
    "group by 5,000": "SELECT device, count(*) n, sum(amount) s, avg(load) l FROM events GROUP BY device",
    "group by 1 M": "SELECT account, count(*) n, sum(took_ms) s FROM events GROUP BY account",
    "group by hour": "SELECT extract(hour FROM happened) h, count(*) n, avg(temperature) t FROM events GROUP BY extract(hour FROM happened)",
    "count distinct": "SELECT count(DISTINCT account) a, count(DISTINCT device) d FROM events",
    "top 100 by an integer": "SELECT id, took_ms, url FROM events ORDER BY took_ms DESC, id LIMIT 100",
    "top 10 by text": "SELECT id, url FROM events ORDER BY url, id LIMIT 10",
    "top 10 by a float of a filter": "SELECT id, load FROM events WHERE level = 'fatal' ORDER BY load DESC, id LIMIT 10",
    "3%, all columns": "SELECT * FROM events WHERE level = 'error'",
    "amounts of a range": "SELECT count(amount) n, sum(amount) s, min(amount) a, max(amount) b FROM events WHERE amount BETWEEN 500 AND 510.5",
    "least and greatest text": "SELECT min(session) a, max(url) b FROM events",
}

COLUMNS = 200
WIDE = "CREATE TABLE wide AS SELECT " + ", ".join(
    f"(hash(i * 1000 + {c}) % {10 ** (1 + c % 7)})::{'INTEGER' if c % 2 else 'BIGINT'} AS c{c}" if c % 4 else
    f"(hash(i * 1000 + {c}) % 100000)::DOUBLE / 100 AS c{c}" for c in range(COLUMNS)) + " FROM range({n}) AS t(i)"

WIDE_QUERIES = {
    "two of 200 columns, summed": "SELECT sum(c17) a, avg(c100) b FROM wide",
    "a filter on three, one summed": "SELECT sum(c18) a FROM wide WHERE c3 < 100 AND c5 > 300000 AND c7 = 3",
    "1% of the rows, all columns": "SELECT * FROM wide WHERE c1 = 42",
    "ten rows, all columns": "SELECT * FROM wide WHERE c5 = 123456",
    "sums of forty": "SELECT " + ", ".join(f"sum(c{c}) s{c}" for c in range(1, 160, 4)) + " FROM wide",
}

SUITES = {
    "lineitem": {"tables": {"lineitem": None}, "queries": LINEITEM},
    "others": {"tables": {"orders": None, "part": None, "events": EVENTS, "wide": WIDE},
               "queries": {**ORDERS, **PART, **EVENTS_QUERIES, **WIDE_QUERIES}},
}

# Of the tables that are not TPC-H's.
ROWS_AT_SCALE_1 = {"events": 2_000_000, "wide": 100_000}
