use super::*;
use crate::plan::explain;
use crate::plan::expr::ArithmeticOp;
use crate::plan::fold::{evaluate, fold, has_lane};
use crate::types::compare_f64;
use proptest::prelude::*;
use std::cmp::Ordering;

fn decimal_type(precision: u8, scale: u8) -> DataType {
    DataType::Decimal { precision, scale }
}

fn nullable(data_type: DataType) -> Expr {
    Expr::column(0, data_type, true)
}

fn shown(expr: &Expr) -> String {
    explain::expression(expr, &["x".into(), "y".into()])
}

fn d(unscaled: i128, scale: u8) -> Expr {
    decimal_literal(unscaled, scale).unwrap()
}

/// `x op literal` as explained.
fn rewritten(op: CompareOp, data_type: DataType, constant: Expr) -> String {
    shown(&compare(op, nullable(data_type), constant).unwrap())
}

#[test]
fn constants_adapt_to_the_columns_type() {
    let money = decimal_type(15, 2);
    for (op, data_type, constant, expected) in [
        (CompareOp::Less, money, integer(24), "x < 24.00"),
        (CompareOp::GreaterOrEqual, money, d(5, 2), "x >= 0.05"),
        (CompareOp::Equal, money, d(5000, 5), "x = 0.05"),
        (CompareOp::Less, money, d(55, 3), "x <= 0.05"),
        (CompareOp::LessOrEqual, money, d(55, 3), "x <= 0.05"),
        (CompareOp::Greater, money, d(55, 3), "x > 0.05"),
        (CompareOp::GreaterOrEqual, money, d(-55, 3), "x > -0.06"),
        (CompareOp::Less, DataType::Int32, d(25, 1), "x <= 2"),
        (CompareOp::Equal, DataType::Int32, d(20, 1), "x = 2"),
        (CompareOp::Less, DataType::Date, text("1995-03-01"), "x < date '1995-03-01'"),
        (CompareOp::Less, DataType::Date, text("1995-03-01 12:00:00"), "x <= date '1995-03-01'"),
        (
            CompareOp::Equal,
            DataType::Timestamp { utc: false },
            text("1995-03-01"),
            "x = timestamp '1995-03-01 00:00:00'",
        ),
        (CompareOp::Less, DataType::Float64, d(5, 2), "x < 0.05"),
        (CompareOp::Less, DataType::Varchar(10), text("a"), "x < 'a'"),
    ] {
        assert_eq!(rewritten(op, data_type, constant), expected);
    }
    let float = |value| Expr::literal(Scalar::F64(value), DataType::Float64);
    assert_eq!(rewritten(CompareOp::GreaterOrEqual, money, float(0.05)), "x >= 0.05");
    assert_eq!(rewritten(CompareOp::Less, money, float(0.055)), "x <= 0.05");
    assert_eq!(rewritten(CompareOp::Less, DataType::Int64, float(2.5)), "x <= 2");
    assert_eq!(rewritten(CompareOp::Less, DataType::Int64, float(1e17)), "cast(x as float64) < 1e17");
}

#[test]
fn comparisons_that_the_range_decides_keep_null() {
    let money = decimal_type(15, 2);
    let lowest = "-9999999999999.99";
    assert_eq!(rewritten(CompareOp::Equal, money, d(55, 3)), format!("x < {lowest}"));
    assert_eq!(rewritten(CompareOp::NotEqual, money, d(55, 3)), format!("x >= {lowest}"));
    assert_eq!(rewritten(CompareOp::Less, DataType::Int16, integer(40_000)), "x >= -32768");
    assert_eq!(rewritten(CompareOp::Greater, DataType::Int16, integer(40_000)), "x < -32768");
    assert_eq!(rewritten(CompareOp::Greater, DataType::Int16, integer(-40_000)), "x >= -32768");
    let required = Expr::column(0, DataType::Int16, false);
    assert_eq!(compare(CompareOp::Less, required, integer(40_000)).unwrap(), boolean(true));
    assert_eq!(compare(CompareOp::Less, nullable(money), null(DataType::Text)).unwrap(), null(DataType::Boolean));
}

#[test]
fn casts_that_lose_nothing_are_seen_through() {
    let wide = cast(nullable(decimal_type(15, 2)), decimal_type(30, 15)).unwrap();
    assert_eq!(shown(&compare(CompareOp::GreaterOrEqual, wide, d(50_000_000_000_000, 15)).unwrap()), "x >= 0.05");
    let narrow = cast(nullable(DataType::Int64), DataType::Int16).unwrap();
    assert_eq!(shown(&compare(CompareOp::Equal, narrow, integer(5)).unwrap()), "cast(x as int16) = 5");
}

#[test]
fn operand_order_does_not_matter() {
    let left = compare(CompareOp::Greater, integer(24), nullable(decimal_type(15, 2))).unwrap();
    assert_eq!(shown(&left), "x < 24.00");
    let dates = compare(CompareOp::Less, text("1995-01-01"), Expr::literal(Scalar::I64(9190), DataType::Date)).unwrap();
    assert_eq!(dates, boolean(true));
}

#[test]
fn two_columns_meet_at_the_finer_scale() {
    let compared = |a, b| shown(&compare(CompareOp::Less, Expr::column(0, a, true), Expr::column(1, b, true)).unwrap());
    assert_eq!(compared(decimal_type(15, 2), decimal_type(10, 2)), "x < y");
    assert_eq!(compared(decimal_type(15, 2), decimal_type(10, 4)), "cast(x as decimal(17,4)) < y");
    assert_eq!(compared(decimal_type(15, 2), decimal_type(20, 2)), "x < y");
    assert_eq!(compared(decimal_type(5, 2), DataType::Int16), "x < cast(y as decimal(7,2))");
    assert_eq!(compared(decimal_type(5, 2), DataType::Int64), "x < cast(y as decimal(21,2))");
    assert_eq!(compared(DataType::Int16, DataType::Int64), "x < y");
    assert_eq!(compared(DataType::Int16, DataType::Float32), "cast(x as float64) < y");
    assert_eq!(compared(DataType::Date, DataType::Timestamp { utc: false }), "cast(x as timestamp) < y");
}

#[test]
fn arithmetic_types_follow_arrow() {
    let result = |op, a, b| {
        let expr = arithmetic(op, Expr::column(0, a, false), Expr::column(1, b, false)).unwrap();
        expr.data_type.to_string()
    };
    let money = decimal_type(15, 2);
    assert_eq!(result(ArithmeticOp::Add, money, money), "decimal(16,2)");
    assert_eq!(result(ArithmeticOp::Subtract, decimal_type(10, 4), money), "decimal(18,4)");
    assert_eq!(result(ArithmeticOp::Multiply, money, money), "decimal(31,4)");
    assert_eq!(result(ArithmeticOp::Divide, money, money), "decimal(21,6)");
    assert_eq!(result(ArithmeticOp::Remainder, money, decimal_type(10, 4)), "decimal(10,4)");
    assert_eq!(result(ArithmeticOp::Multiply, decimal_type(38, 10), money), "decimal(38,12)");
    assert_eq!(result(ArithmeticOp::Add, DataType::Int16, DataType::Int32), "int32");
    assert_eq!(result(ArithmeticOp::Divide, DataType::Int64, DataType::Int32), "int64");
    assert_eq!(result(ArithmeticOp::Add, DataType::Int64, money), "decimal(22,2)");
    assert_eq!(result(ArithmeticOp::Add, DataType::Float32, DataType::Float32), "float32");
    assert_eq!(result(ArithmeticOp::Add, DataType::Float32, money), "float64");
    assert_eq!(result(ArithmeticOp::Subtract, DataType::Date, DataType::Date), "int64");
    // A constant integer has the digits it has: 1 - l_discount stays in the 64-bit lane.
    let discount = arithmetic(ArithmeticOp::Subtract, integer(1), nullable(money)).unwrap();
    assert_eq!((discount.data_type, shown(&discount).as_str()), (decimal_type(16, 2), "1.00 - x"));
    // Division brings the dividend to result scale + divisor scale.
    let quotient = arithmetic(ArithmeticOp::Divide, nullable(money), Expr::column(1, money, true)).unwrap();
    assert_eq!(shown(&quotient), "cast(x as decimal(21,8)) / y");
    let too_fine = arithmetic(ArithmeticOp::Multiply, nullable(decimal_type(38, 20)), nullable(decimal_type(38, 20)));
    assert_eq!(too_fine.unwrap_err().code, ErrorCode::TypeMismatch);
}

#[test]
fn aggregate_types() {
    let of = |function, data_type| {
        aggregate(function, Some(nullable(data_type)))
            .map(|aggregate| aggregate.data_type.to_string())
            .map_err(|e| e.code)
    };
    let money = decimal_type(15, 2);
    assert_eq!(of(AggregateFunction::Sum, DataType::Int16), Ok("int64".into()));
    assert_eq!(of(AggregateFunction::Sum, money), Ok("decimal(25,2)".into()));
    assert_eq!(of(AggregateFunction::Sum, decimal_type(38, 4)), Ok("decimal(38,4)".into()));
    assert_eq!(of(AggregateFunction::Sum, DataType::Float32), Ok("float64".into()));
    assert_eq!(of(AggregateFunction::Avg, DataType::Int32), Ok("float64".into()));
    assert_eq!(of(AggregateFunction::Avg, money), Ok("decimal(19,6)".into()));
    assert_eq!(of(AggregateFunction::Min, DataType::Date), Ok("date".into()));
    assert_eq!(of(AggregateFunction::Sum, DataType::Text), Err(ErrorCode::TypeMismatch));
    let vector = DataType::Vector { dimension: 2, element: crate::VectorElement::F32 };
    assert_eq!(of(AggregateFunction::Max, vector), Err(ErrorCode::TypeMismatch));
    assert_eq!(of(AggregateFunction::CountDistinct, vector), Ok("int64".into()));
}

#[test]
fn in_lists_are_sorted_unique_and_exact() {
    let list = in_list(
        nullable(decimal_type(15, 2)),
        vec![integer(3), d(155, 2), d(55, 3), integer(3), d(3000, 3), null(DataType::Text)],
    );
    assert_eq!(shown(&list.unwrap()), "x in (1.55, 3.00, null)");
    let single = in_list(nullable(DataType::Int16), vec![integer(3), integer(99_999)]).unwrap();
    assert_eq!(shown(&single), "x = 3");
    let never = in_list(nullable(DataType::Int16), vec![integer(99_999)]).unwrap();
    assert_eq!(shown(&never), "x < -32768");
    let mixed =
        in_list(nullable(DataType::Int16), vec![integer(1), integer(2), Expr::column(1, DataType::Int16, true)]);
    assert_eq!(shown(&mixed.unwrap()), "x in (1, 2) or x = y");
    let dates = in_list(nullable(DataType::Date), vec![text("1995-03-01"), text("1994-01-01")]).unwrap();
    assert_eq!(shown(&dates), "x in (date '1994-01-01', date '1995-03-01')");
    assert_eq!(in_list(nullable(DataType::Int16), vec![text("a")]).unwrap_err().code, ErrorCode::TypeMismatch);
}

#[test]
fn boolean_structure_is_flattened_and_negation_sinks() {
    let less = compare(CompareOp::Less, nullable(DataType::Int32), integer(5)).unwrap();
    let more = compare(CompareOp::Greater, Expr::column(1, DataType::Int32, true), integer(7)).unwrap();
    let both = and(vec![less.clone(), and(vec![more.clone(), boolean(true)]).unwrap()]).unwrap();
    assert_eq!(shown(&both), "x < 5 and y > 7");
    assert_eq!(shown(&not(both.clone()).unwrap()), "x >= 5 or y <= 7");
    assert_eq!(not(not(both.clone()).unwrap()).unwrap(), both);
    assert_eq!(and(vec![less.clone(), boolean(false)]).unwrap(), boolean(false));
    assert_eq!(or(vec![boolean(false), less.clone()]).unwrap(), less);
    assert_eq!(and(vec![]).unwrap(), boolean(true));
    let like = like(Expr::column(1, DataType::Text, true), "a%b", Some('\\'), false).unwrap();
    assert_eq!(shown(&not(like).unwrap()), "y not like 'a%b'");
    assert_eq!(not(nullable(DataType::Int64)).unwrap_err().code, ErrorCode::TypeMismatch);
}

#[test]
fn like_without_wildcards_is_equality() {
    let of = |pattern| shown(&like(nullable(DataType::Text), pattern, Some('\\'), false).unwrap());
    assert_eq!(of("abc"), "x = 'abc'");
    assert_eq!(of("a\\%c"), "x = 'a%c'");
    assert_eq!(of("%"), "x >= ''");
    assert_eq!(of("a%"), "x like 'a%'");
}

#[test]
fn truth_tests_are_never_null() {
    let flag = nullable(DataType::Boolean);
    assert_eq!(shown(&is_truth(flag.clone(), true).unwrap()), "coalesce(x, false)");
    assert!(!is_truth(flag.clone(), false).unwrap().nullable);
    let distinct = is_distinct(flag.clone(), Expr::column(1, DataType::Boolean, true)).unwrap();
    for (x, y, expected) in [
        (Scalar::Null, Scalar::Null, false),
        (Scalar::Null, Scalar::Bool(true), true),
        (Scalar::Bool(true), Scalar::Bool(true), false),
        (Scalar::Bool(true), Scalar::Bool(false), true),
    ] {
        let row = |index: usize| if index == 0 { x.clone() } else { y.clone() };
        assert_eq!(evaluate(&distinct, &row), Ok(Scalar::Bool(expected)));
    }
}

#[test]
fn case_and_coalesce_find_a_common_type() {
    let flag = nullable(DataType::Boolean);
    let expr = case(vec![(flag.clone(), integer(1)), (flag.clone(), d(25, 1))], None).unwrap();
    assert_eq!((expr.data_type, expr.nullable), (decimal_type(20, 1), true));
    let dates = coalesce(vec![nullable(DataType::Date), text("1995-03-01")]).unwrap();
    assert_eq!((dates.data_type, dates.nullable), (DataType::Date, false));
    let mixed = coalesce(vec![nullable(DataType::Date), integer(1)]);
    assert!(mixed.unwrap_err().message.contains("date and int64"));
    let folded = case(vec![(boolean(true), integer(1))], None).unwrap();
    assert_eq!(folded, integer(1));
    assert_eq!(shown(&nullif(nullable(DataType::Int64), integer(0)).unwrap()), "case when x = 0 then null else x end");
}

#[test]
fn failing_constants_stay_and_fail_when_run() {
    let failing = arithmetic(ArithmeticOp::Divide, integer(1), integer(0)).unwrap();
    assert_eq!(shown(&failing), "1 / 0");
    assert_eq!(evaluate(&failing, &|_| Scalar::Null).unwrap_err().code, ErrorCode::DivisionByZero);
    assert_eq!(arithmetic(ArithmeticOp::Multiply, integer(6), integer(7)).unwrap(), integer(42));
}

#[test]
fn errors_name_operator_and_types_and_unknown_columns_their_neighbours() {
    let error = compare(CompareOp::Less, nullable(DataType::Text), integer(1)).unwrap_err();
    assert_eq!(error.message, "there is no text < int64: cast one side");
    let schema = Schema::new(
        ["l_quantity", "l_shipdate", "l_tax"].map(|name| crate::Field::new(name, DataType::Int64, true)).to_vec(),
    )
    .unwrap();
    assert_eq!(
        column(&schema, "l_quantty").unwrap_err().message,
        "there is no column \"l_quantty\": did you mean l_quantity?"
    );
    assert_eq!(
        column(&schema, "shipdate").unwrap_err().message,
        "there is no column \"shipdate\": did you mean l_shipdate?"
    );
    assert!(column(&schema, "zzz").unwrap_err().message.contains("l_quantity, l_shipdate, l_tax"));
    assert_eq!(column(&schema, "_rowid").unwrap(), Expr::column(3, DataType::Int64, false));
}

#[test]
fn limits_are_checked_without_recursion() {
    let mut deep = nullable(DataType::Int64);
    for _ in 0..EXPRESSION_DEPTH_MAX {
        deep = negate(deep).unwrap();
    }
    assert_eq!(check_limits([&deep]).unwrap_err().code, ErrorCode::LimitExceeded);
    let wide = or((0..1_000).map(|_| nullable(DataType::Boolean)).collect()).unwrap();
    assert!(check_limits([&wide]).is_ok());
    assert_eq!(check_limits(std::iter::repeat_n(&wide, 101)).unwrap_err().code, ErrorCode::LimitExceeded);
}

/// An exact number as a pair, compared by cross-multiplication in 256 bits' worth of digits: by text.
fn order_exactly(a: (i128, u8), b: (i128, u8)) -> Ordering {
    let digits = |(unscaled, scale): (i128, u8)| {
        format!("{:0>80}{}", unscaled.unsigned_abs(), "0".repeat(usize::from(38 - scale)))
    };
    let (x, y) = (digits(a), digits(b));
    let width = x.len().max(y.len());
    let magnitude = format!("{x:0>width$}").cmp(&format!("{y:0>width$}"));
    match (a.0 < 0, b.0 < 0) {
        (false, false) => magnitude,
        (true, true) => magnitude.reverse(),
        (true, false) => {
            if a.0 == 0 && b.0 == 0 {
                Ordering::Equal
            } else {
                Ordering::Less
            }
        }
        (false, true) => Ordering::Greater,
    }
}

const OPS: [CompareOp; 6] = [
    CompareOp::Equal,
    CompareOp::NotEqual,
    CompareOp::Less,
    CompareOp::LessOrEqual,
    CompareOp::Greater,
    CompareOp::GreaterOrEqual,
];

fn exact_type() -> impl Strategy<Value = DataType> {
    prop_oneof![
        Just(DataType::Int16),
        Just(DataType::Int32),
        Just(DataType::Int64),
        (1u8..=38).prop_flat_map(|precision| (0..=precision).prop_map(move |scale| decimal_type(precision, scale))),
    ]
}

/// A value of an exact type: anything, or near the ends or zero.
fn value_of(data_type: DataType, seed: i128, near: u8) -> Scalar {
    let (min, max) = match (data_type, data_type.i64_range()) {
        (_, Some((min, max))) => (i128::from(min), i128::from(max)),
        (DataType::Decimal { precision, .. }, None) => {
            (-decimal::unscaled_max(precision), decimal::unscaled_max(precision))
        }
        _ => unreachable!("exact types only"),
    };
    let value = match near % 4 {
        0 => min + seed.rem_euclid(3),
        1 => max - seed.rem_euclid(3),
        2 => (seed.rem_euclid(2001) - 1000).clamp(min, max),
        _ => seed.rem_euclid(max) * seed.signum(),
    };
    crate::cast::in_lane(value.clamp(min, max), &data_type).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn rewritten_comparisons_equal_exact_ones(
        column_type in exact_type(), constant_type in exact_type(),
        seeds in any::<(i128, i128)>(), near in any::<(u8, u8)>(), op in 0usize..6, swap in any::<bool>(), close in any::<bool>(),
    ) {
        let value = value_of(column_type, seeds.0, near.0);
        let mut constant = value_of(constant_type, seeds.1, near.1);
        let (s1, s2) = (crate::cast::scale_of(&column_type), crate::cast::scale_of(&constant_type));
        if close
            && let Some(shifted) = decimal::rescale(value.as_i128().unwrap(), s1, s2).and_then(|v| v.checked_add(seeds.1.rem_euclid(3) - 1))
            && let Some(scalar) = crate::cast::in_lane(shifted, &constant_type)
            && crate::plan::fold::has_lane(&scalar, &constant_type)
        {
            constant = scalar;
        }
        let literal = Expr::literal(constant.clone(), constant_type);
        let op = OPS[op];
        let expr = if swap {
            compare(op.swapped(), literal, nullable(column_type)).unwrap()
        } else {
            compare(op, nullable(column_type), literal).unwrap()
        };
        // The column is never cast.
        let mut casts = false;
        expr.walk(&mut |node| casts |= matches!(node.kind, ExprKind::Cast(_)));
        prop_assert!(!casts, "{}", shown(&expr));
        let exact = order_exactly((value.as_i128().unwrap(), s1), (constant.as_i128().unwrap(), s2));
        prop_assert_eq!(evaluate(&expr, &|_| value.clone()), Ok(Scalar::Bool(op.matches(exact))), "{} at {:?}", shown(&expr), value);
        prop_assert_eq!(evaluate(&expr, &|_| Scalar::Null), Ok(Scalar::Null));
    }

    #[test]
    fn comparisons_with_floats_equal_comparisons_as_float64(
        column_type in exact_type(), seed in any::<i128>(), near in any::<u8>(), op in 0usize..6, raw in any::<f64>(), close in any::<bool>(), ulps in -2i64..=2,
    ) {
        let value = value_of(column_type, seed, near);
        let as_float = decimal::to_f64(value.as_i128().unwrap(), crate::cast::scale_of(&column_type));
        let constant = if close && as_float != 0.0 { f64::from_bits((as_float.to_bits() as i64 + ulps) as u64) } else { raw };
        let expr = compare(OPS[op], nullable(column_type), Expr::literal(Scalar::F64(constant), DataType::Float64)).unwrap();
        let expected = OPS[op].matches(compare_f64(as_float, constant));
        prop_assert_eq!(evaluate(&expr, &|_| value.clone()), Ok(Scalar::Bool(expected)), "{} at {:?}", shown(&expr), value);
    }

    #[test]
    fn comparisons_of_two_columns_are_exact(a in exact_type(), b in exact_type(), seeds in any::<(i128, i128)>(), near in any::<(u8, u8)>(), op in 0usize..6) {
        let (x, y) = (value_of(a, seeds.0, near.0), value_of(b, seeds.1, near.1));
        let expr = compare(OPS[op], Expr::column(0, a, true), Expr::column(1, b, true)).unwrap();
        let ExprKind::Compare { left, right, .. } = &expr.kind else { panic!("not a comparison") };
        prop_assert_eq!(left.data_type.lane(), right.data_type.lane());
        prop_assert_eq!(crate::cast::scale_of(&left.data_type), crate::cast::scale_of(&right.data_type));
        let exact = order_exactly((x.as_i128().unwrap(), crate::cast::scale_of(&a)), (y.as_i128().unwrap(), crate::cast::scale_of(&b)));
        match evaluate(&expr, &|index| if index == 0 { x.clone() } else { y.clone() }) {
            Ok(answer) => prop_assert_eq!(answer, Scalar::Bool(OPS[op].matches(exact))),
            // Scales so far apart that the values don't fit in 38 digits together.
            Err(error) => prop_assert_eq!(error.code, ErrorCode::NumericOverflow),
        }
    }

    #[test]
    fn dates_compare_with_timestamps_as_midnights(days in any::<i32>(), microseconds in any::<i64>(), near in -2i64..=2, close in any::<bool>(), op in 0usize..6) {
        let days = i64::from(days);
        let microseconds = match days.checked_mul(crate::calendar::DAY_MICROSECONDS) {
            Some(midnight) if close => midnight.saturating_add(near),
            _ => microseconds,
        };
        let constant = Expr::literal(Scalar::I64(microseconds), DataType::Timestamp { utc: false });
        let expr = compare(OPS[op], nullable(DataType::Date), constant).unwrap();
        let exact = (i128::from(days) * 86_400_000_000).cmp(&i128::from(microseconds));
        prop_assert_eq!(evaluate(&expr, &|_| Scalar::I64(days)), Ok(Scalar::Bool(OPS[op].matches(exact))));
    }

    #[test]
    fn in_lists_equal_disjunctions(column_type in exact_type(), seeds in prop::collection::vec(any::<(i128, u8)>(), 1..6), types in prop::collection::vec(exact_type(), 6), pick in any::<(i128, u8)>(), with_null in any::<bool>()) {
        let value = value_of(column_type, pick.0, pick.1);
        let mut items: Vec<Expr> = seeds.iter().zip(&types).map(|((seed, near), data_type)| Expr::literal(value_of(*data_type, *seed, *near), *data_type)).collect();
        if pick.0 % 2 == 0 {
            items.push(Expr::literal(value.clone(), column_type));
        }
        if with_null {
            items.push(null(DataType::Text));
        }
        let naive = or(items.iter().map(|item| compare(CompareOp::Equal, nullable(column_type), item.clone()).unwrap()).collect()).unwrap();
        let list = in_list(nullable(column_type), items).unwrap();
        for row in [value, Scalar::Null] {
            prop_assert_eq!(evaluate(&list, &|_| row.clone()), evaluate(&naive, &|_| row.clone()), "{}", shown(&list));
        }
    }

    #[test]
    fn decimal_arithmetic_is_exact(a in exact_type(), b in exact_type(), seeds in any::<(i64, i64)>(), op in 0usize..4) {
        let op = [ArithmeticOp::Add, ArithmeticOp::Subtract, ArithmeticOp::Multiply, ArithmeticOp::Remainder][op];
        let (x, y) = (value_of(a, seeds.0.into(), 2), value_of(b, seeds.1.into(), 2));
        let Ok(expr) = arithmetic(op, Expr::column(0, a, true), Expr::column(1, b, true)) else { return Ok(()) };
        let ExprKind::Arithmetic { left, right, .. } = &expr.kind else { panic!("not arithmetic") };
        prop_assert_eq!(left.data_type.lane(), expr.data_type.lane());
        prop_assert_eq!(right.data_type.lane(), expr.data_type.lane());
        prop_assert!(expr.data_type.is_valid());
        let (s1, s2, s) = (crate::cast::scale_of(&a), crate::cast::scale_of(&b), crate::cast::scale_of(&expr.data_type));
        let (u, v) = (x.as_i128().unwrap(), y.as_i128().unwrap());
        let common = s1.max(s2);
        let (Some(p), Some(q)) = (decimal::rescale(u, s1, common), decimal::rescale(v, s2, common)) else { return Ok(()) };
        let expected = match op {
            ArithmeticOp::Add => p.checked_add(q),
            ArithmeticOp::Subtract => p.checked_sub(q),
            ArithmeticOp::Multiply => u.checked_mul(v),
            _ if q == 0 => return Ok(()),
            _ => p.checked_rem(q),
        };
        prop_assert_eq!(s, if op == ArithmeticOp::Multiply { s1 + s2 } else { common });
        match evaluate(&expr, &|index| if index == 0 { x.clone() } else { y.clone() }) {
            Ok(answer) => {
                prop_assert!(has_lane(&answer, &expr.data_type));
                prop_assert_eq!(answer.as_i128(), expected);
            }
            Err(error) => prop_assert_eq!(error.code, ErrorCode::NumericOverflow),
        }
    }

    #[test]
    fn division_truncates_the_exact_quotient(a in exact_type(), b in exact_type(), seeds in any::<(i64, i64)>()) {
        let (x, y) = (value_of(a, seeds.0.into(), 2), value_of(b, seeds.1.into(), 2));
        let Ok(expr) = arithmetic(ArithmeticOp::Divide, Expr::column(0, a, true), Expr::column(1, b, true)) else { return Ok(()) };
        if y.as_i128() == Some(0) || expr.data_type.is_integer() {
            return Ok(());
        }
        let (s1, s2, s) = (crate::cast::scale_of(&a), crate::cast::scale_of(&b), crate::cast::scale_of(&expr.data_type));
        prop_assert!(s >= s1.min(34));
        if let Ok(answer) = evaluate(&expr, &|index| if index == 0 { x.clone() } else { y.clone() }) {
            // quotient = u * 10^(s + s2 - s1) / v, truncated.
            let scaled = decimal::rescale(x.as_i128().unwrap(), 0, s + s2 - s1);
            if let Some(scaled) = scaled {
                prop_assert_eq!(answer.as_i128(), Some(scaled / y.as_i128().unwrap()));
            }
        }
    }

    #[test]
    fn folding_keeps_the_value(a in any::<i16>(), b in any::<i16>(), c in any::<bool>()) {
        let literal = |value: i16| Expr::literal(Scalar::I64(value.into()), DataType::Int16);
        let build = |x: Expr, y: Expr, z: Expr| {
            let sum = arithmetic(ArithmeticOp::Multiply, coerce(x.clone(), DataType::Int64).unwrap(), y.clone()).unwrap();
            let test = compare(CompareOp::Less, sum.clone(), y).unwrap();
            case(vec![(and(vec![test, z]).unwrap(), sum)], Some(coerce(x, DataType::Int64).unwrap())).unwrap()
        };
        let columns = build(Expr::column(0, DataType::Int16, false), Expr::column(1, DataType::Int16, false), Expr::column(2, DataType::Boolean, false));
        let row = |index: usize| match index { 0 => Scalar::I64(a.into()), 1 => Scalar::I64(b.into()), _ => Scalar::Bool(c) };
        let constants = fold(build(literal(a), literal(b), boolean(c)));
        prop_assert_eq!(constants.kind, ExprKind::Literal(evaluate(&columns, &row).unwrap()));
    }
}
