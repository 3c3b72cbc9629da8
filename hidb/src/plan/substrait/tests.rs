//! Plans there and back, plans as other producers write them, and plans that must be refused.

use proptest::prelude::*;
use prost::Message;
use substrait::proto::expression::literal::LiteralType;
use substrait::proto::expression::{Literal, RexType};
use substrait::proto::extensions::SimpleExtensionDeclaration;
use substrait::proto::extensions::simple_extension_declaration::MappingType;
use substrait::proto::{
    Expression, ExtendedExpression, FilterRel, JoinRel, ProjectRel, RelCommon, Version, rel_common,
};

use super::*;
use crate::plan::sql::{ScanText, parse_predicate, parse_scan};
use crate::plan::{Phase, build};
use crate::schema::Field;

fn schema() -> Schema {
    let columns = [
        ("id", "int64", false),
        ("small", "int16", true),
        ("n", "int32", true),
        ("price", "decimal(15,2)", false),
        ("wide", "decimal(30,4)", true),
        ("f", "float32", true),
        ("d", "float64", true),
        ("name", "text", true),
        ("code", "varchar(8)", false),
        ("raw", "bytea", true),
        ("day", "date", true),
        ("at", "timestamp", true),
        ("seen", "timestamptz", false),
        ("flag", "boolean", true),
        ("v", "vector(2,f32)", true),
    ];
    let field =
        |(name, data_type, nullable): (&str, &str, bool)| Field::new(name, data_type.parse().unwrap(), nullable);
    Schema::new(columns.into_iter().map(field).collect()).unwrap()
}

fn resolve(name: &str) -> Result<Schema> {
    match name {
        "t" => Ok(schema()),
        _ => Err(Error::new(ErrorCode::UnknownTable, format!("no table {name:?}"))),
    }
}

fn text(filter: &str, select: &[&str], aggregates: &[&str], group_by: &[&str], order_by: &[&str]) -> ScanText {
    let strings = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
    ScanText {
        table: "t".into(),
        filter: (!filter.is_empty()).then(|| filter.to_string()),
        select: strings(select),
        aggregates: strings(aggregates),
        group_by: strings(group_by),
        order_by: strings(order_by),
        ..ScanText::default()
    }
}

const PREDICATES: &[&str] = &[
    "id = 7",
    "price between 1.5 and 20.25 and n <> 3",
    "small in (1, 2, 3) or n not in (4, 5, null)",
    "name like '%special%requests%'",
    "name not like 'a!%%' escape '!'",
    "name ilike 'Né_%'",
    "code in ('AIR', 'REG AIR', 'it''s')",
    "day >= date '1994-01-01' and day < date '1994-01-01' + interval '1' year",
    "at + interval '90' minute > seen",
    "seen > timestamp '2020-02-29 12:00:00.000001'",
    "day - date '1970-01-01' > 12",
    "extract(year from day) = 1995 and extract(dow from at) = 0 and extract(epoch from seen) > 10",
    "extract(week from day) + extract(quarter from day) * extract(doy from day) > 50",
    "flag is null or not flag",
    "price * (1 - 0.05) / 3 > wide % 7",
    "wide / price > -wide",
    "f + d * 2 > 0.5 and f > 1",
    "coalesce(n, small, 0) = 1",
    "case when n > 3 then 'big' when n is null then name else code end = 'big'",
    "case n when 1 then price else null end > 3",
    "nullif(n, 3) is not null",
    "substring(name from 2 for 3) = 'abc' or substring(code from 4) = 'x'",
    "length(name) > 3 and length(raw) = 2",
    "lower(name) = upper(code)",
    "cast(n as decimal(12,3)) = cast(name as decimal(12,3))",
    "cast(price as text) = '1.50' or cast(id as varchar(5)) = 'x'",
    "_rowid > 17",
    "raw = 'ab' and id in (9223372036854775807, -9223372036854775808)",
];

fn plans() -> Vec<ScanPlan> {
    let schema = schema();
    let mut texts: Vec<ScanText> = PREDICATES.iter().map(|p| text(p, &["id", "name"], &[], &[], &[])).collect();
    texts.push(text("", &[], &[], &[], &[]));
    texts.push(text("n > 1", &["price * 2 as twice", "id"], &[], &[], &["price desc", "name"]));
    texts.push(text("", &[], &["count(*)", "count(distinct name)", "sum(price * n)", "avg(wide)"], &[], &[]));
    texts.push(text("id > 5", &[], &["min(day)", "max(f)", "sum(d)"], &["code", "n + 1"], &["code desc"]));
    let mut limited = text("", &["id"], &[], &[], &["day"]);
    (limited.limit, limited.offset) = (Some(10), 3);
    texts.push(limited);
    let mut plans = Vec::new();
    for scan in texts {
        match parse_scan(&scan, &schema) {
            Ok(plan) => plans.push(plan),
            Err(error) => panic!("{scan:?}: {error}"),
        }
    }
    let mut intermediate = plans[plans.len() - 3].clone();
    intermediate.aggregation.as_mut().unwrap().phase = Phase::Intermediate;
    let fields = intermediate.aggregation.as_ref().unwrap().output_fields();
    for output in &mut intermediate.outputs {
        if let ExprKind::Column(index) = output.expr.kind {
            output.expr = Expr::column(index, fields[index].0, fields[index].1);
        }
    }
    plans.push(intermediate);
    let mut vectors = plans[0].clone();
    let vector: DataType = "vector(2,f32)".parse().unwrap();
    let literal = Expr::literal(Scalar::Bytes(vec![0, 0, 128, 63, 0, 0, 0, 64]), vector);
    let column = Expr::column(14, vector, true);
    vectors.filter = Some(build::compare(crate::plan::CompareOp::Equal, column, literal).unwrap());
    plans.push(vectors);
    plans
}

/// The plan as if another producer had written it.
fn foreign(bytes: &[u8]) -> Vec<u8> {
    let mut plan = Plan::decode(bytes).unwrap();
    make_foreign(&mut plan.version, &mut plan.extensions);
    plan.encode_to_vec()
}

fn make_foreign(version: &mut Option<Version>, extensions: &mut [SimpleExtensionDeclaration]) {
    version.as_mut().unwrap().producer = "another engine".into();
    for extension in extensions {
        if let Some(MappingType::ExtensionFunction(function)) = &mut extension.mapping_type {
            function.name.push_str(":any_any");
        }
    }
}

/// The filter as if another producer had written it.
fn foreign_filter(bytes: &[u8]) -> Vec<u8> {
    let mut message = ExtendedExpression::decode(bytes).unwrap();
    make_foreign(&mut message.version, &mut message.extensions);
    message.encode_to_vec()
}

fn filters() -> Vec<Expr> {
    let mut filters: Vec<Expr> = plans().into_iter().filter_map(|plan| plan.filter).collect();
    filters.extend(
        ["1 = 1", "_rowid in (1, 2) or flag", "id = _rowid", "v is null", "null"]
            .map(|text| parse_predicate(text, &schema()).unwrap_or_else(|error| panic!("{text}: {error}"))),
    );
    filters
}

#[test]
fn plans_come_back_as_they_were() {
    for plan in plans() {
        let bytes = to_substrait(&plan, &schema());
        assert_eq!(table_name(&bytes).unwrap(), "t");
        assert_eq!(from_substrait(&bytes, &resolve).unwrap(), plan);
    }
}

#[test]
fn another_producers_plan_is_typed_as_text_is() {
    // Reading coerces again. What was coerced already must not change, except where the first
    // coercion left a shape (a rescaled dividend, say) that is a different question when asked anew.
    for plan in plans() {
        let has_division = {
            let mut found = false;
            for_each_expr(&plan, &mut |e| {
                found |= matches!(
                    e.kind,
                    ExprKind::Arithmetic {
                        op: crate::plan::ArithmeticOp::Divide | crate::plan::ArithmeticOp::Multiply,
                        ..
                    }
                )
            });
            found
        };
        let read = from_substrait(&foreign(&to_substrait(&plan, &schema())), &resolve).unwrap();
        if !has_division {
            assert_eq!(read, plan);
        }
        assert_eq!(read.outputs.len(), plan.outputs.len());
    }
}

#[test]
fn filters_come_back_as_they_were_and_are_what_the_plan_with_them_has() {
    for filter in filters() {
        let bytes = filter_to_substrait(&filter, &schema());
        assert_eq!(filter_from_substrait(&bytes, &schema()).unwrap(), filter);
        // One reading of expressions: another producer's filter is typed as it would be within a plan.
        let mut plan = parse_scan(&text("", &["id"], &[], &[], &[]), &schema()).unwrap();
        plan.filter = Some(filter);
        let in_plan = from_substrait(&foreign(&to_substrait(&plan, &schema())), &resolve).unwrap().filter;
        assert_eq!(filter_from_substrait(&foreign_filter(&bytes), &schema()).ok(), in_plan);
    }
}

#[test]
fn filters_that_are_none_are_refused_by_what_is_wrong_with_them() {
    let schema = schema();
    let filter = |text: &str| parse_predicate(text, &schema).unwrap();
    let code = |bytes: &[u8]| filter_from_substrait(bytes, &schema).unwrap_err().code;
    let changed = |change: &dyn Fn(&mut ExtendedExpression)| {
        let mut message = ExtendedExpression::decode(&filter_to_substrait(&filter("n > 1"), &schema)[..]).unwrap();
        change(&mut message);
        code(&message.encode_to_vec())
    };
    // Not boolean.
    let number = Expr::column(2, DataType::Int32, true);
    assert_eq!(code(&filter_to_substrait(&number, &schema)), ErrorCode::TypeMismatch);
    // A value that nobody gives.
    let parameter = Expr { kind: ExprKind::Parameter(0), data_type: DataType::Int32, nullable: true };
    let bound = build::compare(crate::plan::CompareOp::Equal, number, parameter).unwrap();
    assert_eq!(code(&filter_to_substrait(&bound, &schema)), ErrorCode::InvalidParameter);
    // Another table.
    let other = Schema::new(vec![Field::new("n", DataType::Int64, true)]).unwrap();
    let bytes = filter_to_substrait(&filter("n > 1"), &schema);
    assert_eq!(filter_from_substrait(&bytes, &other).unwrap_err().code, ErrorCode::StaleSchema);
    let other = Schema::new(vec![Field::new("m", DataType::Int32, true)]).unwrap();
    assert_eq!(filter_from_substrait(&bytes, &other).unwrap_err().code, ErrorCode::UnknownColumn);
    // None, several, an aggregate, no columns.
    assert_eq!(code(&[]), ErrorCode::UnsupportedPlan);
    assert_eq!(changed(&|m| m.referred_expr.push(m.referred_expr[0].clone())), ErrorCode::UnsupportedPlan);
    assert_eq!(changed(&|m| m.base_schema = None), ErrorCode::UnsupportedPlan);
    assert_eq!(changed(&|m| m.base_schema.as_mut().unwrap().names.clear()), ErrorCode::UnsupportedPlan);
    let measure = || substrait::proto::expression_reference::ExprType::Measure(Default::default());
    assert_eq!(changed(&|m| m.referred_expr[0].expr_type = Some(measure())), ErrorCode::UnsupportedPlan);
    // Deeper than any stack, and deeper than expressions may be.
    assert_eq!(code(&[0x0b; 100_000]), ErrorCode::LimitExceeded);
    let mut deep = filter("flag");
    for _ in 0..crate::plan::EXPRESSION_DEPTH_MAX {
        deep = Expr { kind: ExprKind::Not(Box::new(deep)), data_type: DataType::Boolean, nullable: true };
    }
    assert_eq!(code(&filter_to_substrait(&deep, &schema)), ErrorCode::LimitExceeded);
}

fn sample() -> Plan {
    let plan = parse_scan(&text("n > 1", &["id", "name"], &[], &[], &[]), &schema()).unwrap();
    Plan::decode(&foreign(&to_substrait(&plan, &schema()))[..]).unwrap()
}

fn root_input(plan: &mut Plan) -> &mut Rel {
    match plan.relations[0].rel_type.as_mut().unwrap() {
        plan_rel::RelType::Root(root) => root.input.as_mut().unwrap(),
        plan_rel::RelType::Rel(rel) => rel,
    }
}

fn read_error(plan: &Plan) -> Error {
    from_substrait(&plan.encode_to_vec(), &resolve).unwrap_err()
}

#[test]
fn unsupported_relations_and_functions_are_named() {
    let mut plan = sample();
    *root_input(&mut plan) = Rel { rel_type: Some(RelType::Join(Box::<JoinRel>::default())) };
    let error = read_error(&plan);
    assert_eq!(error.code, ErrorCode::UnsupportedPlan);
    assert!(error.message.contains("Join") && error.message.contains("Aggregate"), "{error}");

    let mut plan = sample();
    for extension in &mut plan.extensions {
        if let Some(MappingType::ExtensionFunction(function)) = &mut extension.mapping_type {
            function.name = "sqrt:fp64".into();
        }
    }
    let error = read_error(&plan);
    assert_eq!(error.code, ErrorCode::UnknownFunction);
    assert!(error.message.contains("\"sqrt\"") && error.message.contains("between"), "{error}");
}

#[test]
fn unknown_tables_and_columns_are_named() {
    let unknown = |_: &str| Err(Error::new(ErrorCode::UnknownTable, "no such table"));
    assert_eq!(from_substrait(&sample().encode_to_vec(), &unknown).unwrap_err().code, ErrorCode::UnknownTable);
    let other = |_: &str| Schema::new(vec![Field::new("id", DataType::Int64, false)]);
    assert_eq!(from_substrait(&sample().encode_to_vec(), &other).unwrap_err().code, ErrorCode::UnknownColumn);
}

#[test]
fn a_typed_plan_over_a_changed_schema_is_stale() {
    let plan = parse_scan(&text("n > 1", &["id"], &[], &[], &[]), &schema()).unwrap();
    let changed =
        |_: &str| Schema::new(vec![Field::new("id", DataType::Int64, true), Field::new("n", DataType::Int64, true)]);
    let error = from_substrait(&to_substrait(&plan, &schema()), &changed).unwrap_err();
    assert_eq!(error.code, ErrorCode::StaleSchema);
}

#[test]
fn projections_that_multiply_an_expression_are_refused() {
    // Each projection adds a column that uses the one before twice: 2^60 nodes if copied.
    let flags = parse_scan(&text("not flag", &["flag"], &[], &[], &[]), &schema()).unwrap();
    let mut plan = Plan::decode(&foreign(&to_substrait(&flags, &schema()))[..]).unwrap();
    let mut rel = std::mem::take(root_input(&mut plan));
    let reference = |index: i32| {
        use substrait::proto::expression::field_reference::ReferenceType;
        use substrait::proto::expression::{FieldReference, ReferenceSegment, reference_segment};
        let field = reference_segment::StructField { field: index, child: None };
        let segment =
            ReferenceSegment { reference_type: Some(reference_segment::ReferenceType::StructField(Box::new(field))) };
        let reference =
            FieldReference { reference_type: Some(ReferenceType::DirectReference(segment)), root_type: None };
        Expression { rex_type: Some(RexType::Selection(Box::new(reference))) }
    };
    for extension in &mut plan.extensions {
        if let Some(MappingType::ExtensionFunction(function)) = &mut extension.mapping_type
            && function.name.starts_with("not")
        {
            function.name = "and".into();
        }
    }
    for _ in 0..40 {
        let operand = |_| substrait::proto::FunctionArgument {
            arg_type: Some(substrait::proto::function_argument::ArgType::Value(reference(0))),
        };
        let call = substrait::proto::expression::ScalarFunction {
            function_reference: 1,
            arguments: (0..2).map(operand).collect(),
            ..Default::default()
        };
        let expressions = vec![Expression { rex_type: Some(RexType::ScalarFunction(call)) }];
        let emit = rel_common::EmitKind::Emit(rel_common::Emit { output_mapping: vec![1] });
        rel = Rel {
            rel_type: Some(RelType::Project(Box::new(ProjectRel {
                common: Some(RelCommon { emit_kind: Some(emit), ..Default::default() }),
                input: Some(Box::new(rel)),
                expressions,
                advanced_extension: None,
            }))),
        };
    }
    *root_input(&mut plan) = rel;
    let error = read_error(&plan);
    assert_eq!(error.code, ErrorCode::LimitExceeded, "{error}");
}

#[test]
fn deep_nesting_is_refused_before_it_is_decoded() {
    // Filters within filters, by hand: far deeper than any stack.
    let mut bytes = Vec::new();
    for _ in 0..200_000 {
        let length = bytes.len() as u64;
        let mut outer = vec![0x12];
        prost::encoding::encode_varint(length, &mut outer);
        if outer.len() + bytes.len() > 1 << 16 {
            break;
        }
        outer.extend_from_slice(&bytes);
        bytes = outer;
    }
    assert_eq!(from_substrait(&bytes, &resolve).unwrap_err().code, ErrorCode::LimitExceeded);
    // Groups recurse as well, and the decoder descends before it sees that the end is missing.
    assert_eq!(from_substrait(&[0x0b; 100_000], &resolve).unwrap_err().code, ErrorCode::LimitExceeded);
    let truncated: Vec<u8> = (0..20_000).flat_map(|_| [0x12, 0xff, 0x7f]).collect();
    assert!(from_substrait(&truncated, &resolve).is_err());
    let mut plan = sample();
    for _ in 0..100 {
        let input = std::mem::take(root_input(&mut plan));
        let filter = FilterRel { input: Some(Box::new(input)), ..FilterRel::default() };
        *root_input(&mut plan) = Rel { rel_type: Some(RelType::Filter(Box::new(filter))) };
    }
    assert_eq!(read_error(&plan).code, ErrorCode::LimitExceeded);
}

#[test]
fn plans_nested_as_deep_as_may_be_are_decoded_without_harm() {
    // A filter is two messages: `Rel` and `FilterRel`.
    let mut plan = sample();
    for _ in 0..(MESSAGE_NESTING_MAX - 64) / 2 {
        let input = std::mem::take(root_input(&mut plan));
        let filter = FilterRel { input: Some(Box::new(input)), ..FilterRel::default() };
        *root_input(&mut plan) = Rel { rel_type: Some(RelType::Filter(Box::new(filter))) };
    }
    let bytes = stacker::grow(256 << 20, move || plan.encode_to_vec());
    assert!(nests_deeper_than(&bytes, MESSAGE_NESTING_MAX / 2) && !nests_deeper_than(&bytes, MESSAGE_NESTING_MAX));
    assert_eq!(from_substrait(&bytes, &resolve).unwrap_err().code, ErrorCode::LimitExceeded);
}

/// Packed numbers and texts can look like messages.
#[test]
fn every_column_of_a_wide_table_can_be_selected() {
    for columns in [513, 2000, 4096] {
        let fields = (0..columns).map(|n| crate::Field::new(format!("c{n}"), DataType::Int32, true)).collect();
        let schema = Schema::new(fields).unwrap();
        let text = ScanText { table: "t".into(), ..Default::default() };
        let plan = crate::plan::sql::parse_scan(&text, &schema).unwrap();
        let bytes = to_substrait(&plan, &schema);
        let back = from_substrait(&bytes, &|_: &str| Ok(schema.clone())).unwrap();
        assert_eq!(back.outputs.len(), columns);
    }
}

#[test]
fn the_deepest_expression_allowed_survives() {
    let schema = schema();
    let mut expr = Expr::column(0, DataType::Int64, false);
    for _ in 0..crate::plan::EXPRESSION_DEPTH_MAX - 2 {
        expr = Expr { kind: ExprKind::Negate(Box::new(expr)), data_type: DataType::Int64, nullable: false };
    }
    let mut plan = parse_scan(&text("", &["id"], &[], &[], &[]), &schema).unwrap();
    plan.outputs[0].expr = expr;
    assert_eq!(from_substrait(&to_substrait(&plan, &schema), &resolve).unwrap(), plan);
}

#[test]
fn parameters_are_typed_bound_and_checked() {
    let schema = schema();
    let mut plan = parse_scan(&text("", &["id"], &[], &[], &[]), &schema).unwrap();
    let parameter = |index, data_type| Expr { kind: ExprKind::Parameter(index), data_type, nullable: true };
    let op = crate::plan::CompareOp::Equal;
    let by_id = build::compare(op, Expr::column(0, DataType::Int64, false), parameter(0, DataType::Int64)).unwrap();
    let by_name = build::compare(op, Expr::column(7, DataType::Text, true), parameter(1, DataType::Text)).unwrap();
    plan.filter = Some(build::and(vec![by_id, by_name]).unwrap());
    let plan = from_substrait(&to_substrait(&plan, &schema), &resolve).unwrap();
    assert_eq!(parameter_types(&plan).unwrap(), [DataType::Int64, DataType::Text]);
    let bound = bind_parameters(&plan, &[Scalar::I64(7), Scalar::Bytes(b"x".to_vec())]).unwrap();
    assert!(parameter_types(&bound).unwrap().is_empty());
    let code = |values: &[Scalar]| bind_parameters(&plan, values).unwrap_err().code;
    assert_eq!(code(&[Scalar::I64(7)]), ErrorCode::InvalidParameter);
    assert_eq!(code(&[Scalar::Bool(true), Scalar::Null]), ErrorCode::InvalidParameter);
    assert_eq!(code(&[Scalar::I64(7), Scalar::Bytes(vec![0xff])]), ErrorCode::InvalidParameter);
    // A gap in the numbers is a mistake of the producer.
    let mut gap = plan.clone();
    gap.filter =
        Some(build::compare(op, Expr::column(0, DataType::Int64, false), parameter(3, DataType::Int64)).unwrap());
    assert_eq!(parameter_types(&gap).unwrap_err().code, ErrorCode::InvalidParameter);
}

#[test]
fn literals_of_older_producers_are_read() {
    let anchors = std::collections::HashMap::new();
    let read = |literal_type| {
        let message = Literal { nullable: false, type_variation_reference: 0, literal_type: Some(literal_type) };
        match types::read_literal(&message, &anchors) {
            Ok(types::Constant::Value(expr)) => Some((expr.kind, expr.data_type)),
            _ => None,
        }
    };
    let is = |value, data_type| Some((ExprKind::Literal(value), data_type));
    let stamp = |precision, value| substrait::proto::expression::literal::PrecisionTimestamp { precision, value };
    assert_eq!(read(LiteralType::I8(-3)), is(Scalar::I64(-3), DataType::Int16));
    assert_eq!(read(LiteralType::FixedChar("ab".into())), is(Scalar::Bytes(b"ab".to_vec()), DataType::Text));
    let seconds = read(LiteralType::PrecisionTimestamp(stamp(0, 2)));
    assert_eq!(seconds, is(Scalar::I64(2_000_000), DataType::Timestamp { utc: false }));
    let nanos = read(LiteralType::PrecisionTimestampTz(stamp(9, 5_000)));
    assert_eq!(nanos, is(Scalar::I64(5), DataType::Timestamp { utc: true }));
    assert_eq!(read(LiteralType::PrecisionTimestamp(stamp(9, 5_001))), None);
    assert_eq!(read(LiteralType::PrecisionTimestamp(stamp(0, i64::MAX))), None);
    assert_eq!(read(LiteralType::Uuid(vec![0; 16])), None);
}

fn samples() -> Vec<Vec<u8>> {
    plans().iter().map(|plan| to_substrait(plan, &schema())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn damaged_plans_never_panic(which in any::<usize>(), flips in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..8), other in any::<bool>()) {
        thread_local!(static SAMPLES: Vec<Vec<u8>> = samples());
        let mut bytes = SAMPLES.with(|samples| samples[which % samples.len()].clone());
        if other {
            bytes = foreign(&bytes);
        }
        for (at, value) in flips {
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        if let Ok(plan) = from_substrait(&bytes, &resolve) {
            // What is accepted can be written and read again.
            let again = from_substrait(&to_substrait(&plan, &schema()), &resolve);
            prop_assert!(again.is_ok(), "{:?}\n{:?}", plan, again);
        }
        let _ = table_name(&bytes);
    }

    #[test]
    fn damaged_filters_never_panic(which in any::<usize>(), flips in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..8), other in any::<bool>()) {
        thread_local!(static SAMPLES: Vec<Vec<u8>> = filters().iter().map(|filter| filter_to_substrait(filter, &schema())).collect());
        let mut bytes = SAMPLES.with(|samples| samples[which % samples.len()].clone());
        if other {
            bytes = foreign_filter(&bytes);
        }
        for (at, value) in flips {
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        if let Ok(filter) = filter_from_substrait(&bytes, &schema()) {
            let again = filter_from_substrait(&filter_to_substrait(&filter, &schema()), &schema());
            prop_assert!(again.is_ok(), "{:?}\n{:?}", filter, again);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = from_substrait(&bytes, &resolve);
        let _ = filter_from_substrait(&bytes, &schema());
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn constants_of_every_type_come_back(integer in any::<i64>(), wide in -10i128.pow(29)..10i128.pow(29), float in any::<f64>(), word in ".{0,8}") {
        let constants = [
            (Scalar::I64(integer), DataType::Int64),
            (Scalar::I64(integer >> 32), DataType::Int32),
            (Scalar::I64(integer >> 48), DataType::Int16),
            (Scalar::I64(integer >> 32), DataType::Date),
            (Scalar::I64(integer), DataType::Timestamp { utc: true }),
            (Scalar::I64(integer % 10i64.pow(15)), DataType::Decimal { precision: 15, scale: 2 }),
            (Scalar::I128(wide), DataType::Decimal { precision: 30, scale: 4 }),
            (Scalar::F64(f64::from(float as f32)), DataType::Float32),
            (Scalar::F64(float), DataType::Float64),
            (Scalar::Bytes(word.clone().into_bytes()), DataType::Text),
            (Scalar::Bytes(word.clone().into_bytes()), DataType::Varchar(8)),
            (Scalar::Bytes(word.into_bytes()), DataType::Bytea),
            (Scalar::Null, DataType::Vector { dimension: 3, element: crate::VectorElement::I8 }),
            (
                Scalar::Bytes(vec![integer as u8, 0b101]),
                DataType::Vector { dimension: 11, element: crate::VectorElement::Bit },
            ),
        ];
        let mut plan = parse_scan(&text("", &["id"], &[], &[], &[]), &schema()).unwrap();
        for (value, data_type) in constants {
            plan.outputs[0].expr = Expr::literal(value, data_type);
            prop_assert_eq!(&from_substrait(&to_substrait(&plan, &schema()), &resolve).unwrap(), &plan);
        }
    }
}
