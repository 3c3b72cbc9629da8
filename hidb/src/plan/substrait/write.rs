//! A [`ScanPlan`] as a chain of Substrait relations.
//!
//! The chain is Read, Filter, Aggregate, Filter (having), Project, Sort, Fetch, each only where the plan
//! has it. Every function carries its output type, and every constant its exact type, so that reading the
//! plan back gives the same plan. Functions are declared under their standard extensions.

use substrait::proto::aggregate_function::AggregationInvocation;
use substrait::proto::expression::field_reference::{ReferenceType, RootReference, RootType};
use substrait::proto::expression::{self, RexType, reference_segment};
use substrait::proto::extensions::simple_extension_declaration::{ExtensionFunction, ExtensionType, MappingType};
use substrait::proto::extensions::{SimpleExtensionDeclaration, SimpleExtensionUrn};
use substrait::proto::fetch_rel::{CountMode, OffsetMode};
use substrait::proto::function_argument::ArgType;
use substrait::proto::read_rel::{NamedTable, ReadType};
use substrait::proto::rel::RelType;
use substrait::proto::rel_common::{Emit, EmitKind, Hint};
use substrait::proto::sort_field::{SortDirection, SortKind};
use substrait::proto::{
    AggregateFunction as SubstraitAggregate, AggregateRel, AggregationPhase, DynamicParameter, Expression,
    ExpressionReference, ExtendedExpression, FetchRel, FilterRel, FunctionArgument, FunctionOption, NamedStruct, Plan,
    PlanRel, ProjectRel, ReadRel, Rel, RelCommon, RelRoot, SortField, SortRel, Version, aggregate_rel,
    expression_reference, plan_rel, r#type,
};

use prost::Message;

use super::PRODUCER;
use super::functions::{arithmetic_name, compare_name, extract_component};
use super::types::{VECTOR_ANCHOR, VECTOR_TYPE, VECTOR_URN, write_interval, write_literal, write_type};
use crate::ROWID_COLUMN;
use crate::calendar::Interval;
use crate::plan::expr::{Expr, ExprKind};
use crate::plan::scan::{Aggregate, AggregateFunction, Phase, ScanPlan};
use crate::schema::Schema;
use crate::types::{DataType, Scalar};

/// The standard extensions that define the functions we use, by anchor (its place, from 1).
const EXTENSIONS: [&str; 6] = [
    "extension:io.substrait:functions_comparison",
    "extension:io.substrait:functions_boolean",
    "extension:io.substrait:functions_arithmetic",
    "extension:io.substrait:functions_string",
    "extension:io.substrait:functions_datetime",
    "extension:io.substrait:functions_aggregate_generic",
];
const VECTOR_EXTENSION: u32 = EXTENSIONS.len() as u32 + 1;

fn extension_of(function: &str) -> u32 {
    match function {
        "equal" | "not_equal" | "lt" | "lte" | "gt" | "gte" | "is_null" | "coalesce" => 1,
        "and" | "or" | "not" => 2,
        "like" | "substring" | "char_length" | "octet_length" | "lower" | "upper" => 4,
        "extract" => 5,
        "count" => 6,
        _ => 3,
    }
}

/// The plan as an encoded `substrait.Plan` over a table of this schema.
pub fn to_substrait(plan: &ScanPlan, schema: &Schema) -> Vec<u8> {
    let mut read = plan.table_columns();
    if read.is_empty() {
        // A relation without columns is legal, but not every consumer takes it.
        read.push(0);
    }
    let mut writer = Writer::new(read);
    let mut rel = writer.read(plan, schema);
    if let Some(filter) = &plan.filter {
        rel = writer.filter(rel, filter);
    }
    let mut width = writer.columns.len();
    if let Some(aggregation) = &plan.aggregation {
        rel = writer.aggregate(rel, aggregation);
        width = aggregation.keys.len() + aggregation.aggregates.len();
        // From here on references are to the aggregation's outputs.
        writer.columns = (0..width).collect();
    }
    if let Some(having) = &plan.having {
        rel = writer.filter(rel, having);
    }
    rel = writer.project(rel, plan, width);
    let hidden = plan.visible < plan.outputs.len();
    let drop_hidden = |outermost: bool| match hidden && outermost {
        true => common(None, Some((0..plan.visible as i32).collect())),
        false => None,
    };
    let fetches = plan.limit.is_some() || plan.offset > 0;
    if !plan.sort.is_empty() {
        rel = wrap(RelType::Sort(Box::new(SortRel {
            common: drop_hidden(!fetches),
            input: Some(Box::new(rel)),
            sorts: plan.sort.iter().map(|key| sort_field(key.output, key.descending, key.nulls_first)).collect(),
            advanced_extension: None,
        })));
    }
    if fetches {
        rel = fetch(rel, plan.offset, plan.limit, drop_hidden(true));
    } else if plan.sort.is_empty() && hidden {
        rel = wrap(RelType::Project(Box::new(ProjectRel {
            common: drop_hidden(true),
            input: Some(Box::new(rel)),
            ..ProjectRel::default()
        })));
    }
    let names = plan.outputs[..plan.visible].iter().map(|output| output.name.clone()).collect();
    let root = RelRoot { input: Some(rel), names };
    writer.plan(root).encode_to_vec()
}

fn wrap(rel_type: RelType) -> Rel {
    Rel { rel_type: Some(rel_type) }
}

fn common(hint: Option<Hint>, output_mapping: Option<Vec<i32>>) -> Option<RelCommon> {
    let emit_kind = output_mapping.map(|output_mapping| EmitKind::Emit(Emit { output_mapping }));
    Some(RelCommon { hint, advanced_extension: None, emit_kind })
}

fn field(index: usize) -> Expression {
    let segment = expression::ReferenceSegment {
        reference_type: Some(reference_segment::ReferenceType::StructField(Box::new(reference_segment::StructField {
            field: index as i32,
            child: None,
        }))),
    };
    rex(RexType::Selection(Box::new(expression::FieldReference {
        reference_type: Some(ReferenceType::DirectReference(segment)),
        root_type: Some(RootType::RootReference(RootReference {})),
    })))
}

fn rex(rex_type: RexType) -> Expression {
    Expression { rex_type: Some(rex_type) }
}

fn value(expr: Expression) -> FunctionArgument {
    FunctionArgument { arg_type: Some(ArgType::Value(expr)) }
}

fn word(word: &str) -> FunctionArgument {
    FunctionArgument { arg_type: Some(ArgType::Enum(word.to_string())) }
}

fn text_literal(text: &str) -> Expression {
    rex(RexType::Literal(write_literal(&Scalar::Bytes(text.as_bytes().to_vec()), &DataType::Text)))
}

fn sort_field(output: usize, descending: bool, nulls_first: bool) -> SortField {
    let direction = match (descending, nulls_first) {
        (false, true) => SortDirection::AscNullsFirst,
        (false, false) => SortDirection::AscNullsLast,
        (true, true) => SortDirection::DescNullsFirst,
        (true, false) => SortDirection::DescNullsLast,
    };
    SortField { expr: Some(field(output)), sort_kind: Some(SortKind::Direction(direction.into())) }
}

#[allow(deprecated)] // the literal forms are what every consumer understands
fn fetch(input: Rel, offset: u64, limit: Option<u64>, common: Option<RelCommon>) -> Rel {
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    wrap(RelType::Fetch(Box::new(FetchRel {
        common,
        input: Some(Box::new(input)),
        offset_mode: Some(OffsetMode::Offset(count(offset))),
        count_mode: limit.map(|limit| CountMode::Count(count(limit))),
        advanced_extension: None,
    })))
}

fn version() -> Version {
    Version { minor_number: 85, producer: PRODUCER.to_string(), ..Version::default() }
}

fn extension_urns() -> Vec<SimpleExtensionUrn> {
    let urns = EXTENSIONS.iter().chain([&VECTOR_URN]).enumerate();
    urns.map(|(index, urn)| SimpleExtensionUrn { extension_urn_anchor: index as u32 + 1, urn: urn.to_string() })
        .collect()
}

/// Writes the expressions of one message, and what they need declared.
pub(super) struct Writer {
    /// Names of the functions used; the anchor is the place, from 1.
    functions: Vec<&'static str>,
    /// What a column index of the plan is in the input: its place in this list.
    columns: Vec<usize>,
}

impl Writer {
    /// A writer for expressions over these columns of a table (`schema.len()` stands for `_rowid`).
    pub(super) fn new(columns: Vec<usize>) -> Self {
        Writer { functions: Vec::new(), columns }
    }

    fn plan(self, root: RelRoot) -> Plan {
        Plan {
            version: Some(version()),
            extension_urns: extension_urns(),
            extensions: self.declarations(),
            relations: vec![PlanRel { rel_type: Some(plan_rel::RelType::Root(root)) }],
            ..Plan::default()
        }
    }

    /// One expression over [`Writer::base`] as a message of its own.
    pub(super) fn extended_expression(mut self, expr: &Expr, name: &str, schema: &Schema) -> ExtendedExpression {
        let expression = self.expression(expr);
        let referred = ExpressionReference {
            expr_type: Some(expression_reference::ExprType::Expression(expression)),
            output_names: vec![name.to_string()],
        };
        ExtendedExpression {
            version: Some(version()),
            extension_urns: extension_urns(),
            base_schema: Some(self.base(schema)),
            extensions: self.declarations(),
            referred_expr: vec![referred],
            ..ExtendedExpression::default()
        }
    }

    /// The functions used so far, and the type of vectors.
    fn declarations(&self) -> Vec<SimpleExtensionDeclaration> {
        let functions = self.functions.iter().enumerate().map(|(index, name)| {
            MappingType::ExtensionFunction(ExtensionFunction {
                extension_urn_reference: extension_of(name),
                function_anchor: index as u32 + 1,
                name: name.to_string(),
            })
        });
        let vector = MappingType::ExtensionType(ExtensionType {
            extension_urn_reference: VECTOR_EXTENSION,
            type_anchor: VECTOR_ANCHOR,
            name: VECTOR_TYPE.to_string(),
        });
        functions.chain([vector]).map(|mapping| SimpleExtensionDeclaration { mapping_type: Some(mapping) }).collect()
    }

    fn function(&mut self, name: &'static str) -> u32 {
        let place = self.functions.iter().position(|known| *known == name).unwrap_or_else(|| {
            self.functions.push(name);
            self.functions.len() - 1
        });
        place as u32 + 1
    }

    /// The columns that the expressions are over.
    fn base(&self, schema: &Schema) -> NamedStruct {
        let (mut names, mut types) = (Vec::new(), Vec::new());
        for column in &self.columns {
            match schema.fields().get(*column) {
                Some(field) => {
                    names.push(field.name.clone());
                    types.push(write_type(&field.data_type, field.nullable));
                }
                None => {
                    names.push(ROWID_COLUMN.to_string());
                    types.push(write_type(&DataType::Int64, false));
                }
            }
        }
        let base =
            r#type::Struct { types, type_variation_reference: 0, nullability: r#type::Nullability::Required.into() };
        NamedStruct { names, r#struct: Some(base) }
    }

    fn read(&self, plan: &ScanPlan, schema: &Schema) -> Rel {
        wrap(RelType::Read(Box::new(ReadRel {
            base_schema: Some(self.base(schema)),
            read_type: Some(ReadType::NamedTable(NamedTable {
                names: vec![plan.table.clone()],
                advanced_extension: None,
            })),
            ..ReadRel::default()
        })))
    }

    fn filter(&mut self, input: Rel, condition: &Expr) -> Rel {
        wrap(RelType::Filter(Box::new(FilterRel {
            common: None,
            input: Some(Box::new(input)),
            condition: Some(Box::new(self.expression(condition))),
            advanced_extension: None,
        })))
    }

    fn project(&mut self, input: Rel, plan: &ScanPlan, width: usize) -> Rel {
        let hint =
            Hint { output_names: plan.outputs.iter().map(|output| output.name.clone()).collect(), ..Hint::default() };
        let mapping = (width..width + plan.outputs.len()).map(|index| index as i32).collect();
        wrap(RelType::Project(Box::new(ProjectRel {
            common: common(Some(hint), Some(mapping)),
            input: Some(Box::new(input)),
            expressions: plan.outputs.iter().map(|output| self.expression(&output.expr)).collect(),
            advanced_extension: None,
        })))
    }

    #[allow(deprecated)] // filled both ways, for consumers of either
    fn aggregate(&mut self, input: Rel, aggregation: &crate::plan::Aggregation) -> Rel {
        let keys: Vec<Expression> = aggregation.keys.iter().map(|key| self.expression(key)).collect();
        let measures =
            aggregation.aggregates.iter().map(|aggregate| self.measure(aggregate, aggregation.phase)).collect();
        let grouping = aggregate_rel::Grouping {
            expression_references: (0..keys.len() as u32).collect(),
            ..aggregate_rel::Grouping::default()
        };
        wrap(RelType::Aggregate(Box::new(AggregateRel {
            common: None,
            input: Some(Box::new(input)),
            groupings: if keys.is_empty() { Vec::new() } else { vec![grouping] },
            measures,
            grouping_expressions: keys,
            advanced_extension: None,
        })))
    }

    #[allow(deprecated)]
    fn measure(&mut self, aggregate: &Aggregate, phase: Phase) -> aggregate_rel::Measure {
        let (name, invocation) = match aggregate.function {
            AggregateFunction::Count => ("count", AggregationInvocation::All),
            AggregateFunction::CountDistinct => ("count", AggregationInvocation::Distinct),
            AggregateFunction::Sum => ("sum", AggregationInvocation::All),
            AggregateFunction::Min => ("min", AggregationInvocation::All),
            AggregateFunction::Max => ("max", AggregationInvocation::All),
            AggregateFunction::Avg => ("avg", AggregationInvocation::All),
        };
        let phase = match phase {
            Phase::Single => AggregationPhase::InitialToResult,
            Phase::Intermediate => AggregationPhase::InitialToIntermediate,
        };
        let measure = SubstraitAggregate {
            function_reference: self.function(name),
            arguments: aggregate.argument.iter().map(|argument| value(self.expression(argument))).collect(),
            output_type: Some(write_type(&aggregate.data_type, aggregate.nullable())),
            phase: phase.into(),
            invocation: invocation.into(),
            ..SubstraitAggregate::default()
        };
        aggregate_rel::Measure { measure: Some(measure), filter: None }
    }

    fn call(&mut self, name: &'static str, arguments: Vec<FunctionArgument>, of: &Expr) -> Expression {
        self.call_with(name, arguments, Vec::new(), of)
    }

    fn call_with(
        &mut self,
        name: &'static str,
        arguments: Vec<FunctionArgument>,
        options: Vec<FunctionOption>,
        of: &Expr,
    ) -> Expression {
        rex(RexType::ScalarFunction(expression::ScalarFunction {
            function_reference: self.function(name),
            arguments,
            options,
            output_type: Some(write_type(&of.data_type, of.nullable)),
            ..expression::ScalarFunction::default()
        }))
    }

    fn cast(input: Expression, of: &Expr) -> Expression {
        rex(RexType::Cast(Box::new(expression::Cast {
            r#type: Some(write_type(&of.data_type, of.nullable)),
            input: Some(Box::new(input)),
            failure_behavior: expression::cast::FailureBehavior::ThrowException.into(),
        })))
    }

    /// A node that Substrait gives no output type: a cast to its own type says what can't be derived.
    fn with_nullability(node: Expression, derived: bool, of: &Expr) -> Expression {
        if derived == of.nullable { node } else { Self::cast(node, of) }
    }

    fn expression(&mut self, expr: &Expr) -> Expression {
        let mut arg = |expr: &Expr| value(self.expression(expr));
        match &expr.kind {
            ExprKind::Column(index) => {
                let place = self.columns.iter().position(|column| column == index).unwrap_or(*index);
                field(place)
            }
            ExprKind::Literal(scalar) => {
                let node = rex(RexType::Literal(write_literal(scalar, &expr.data_type)));
                Self::with_nullability(node, scalar.is_null(), expr)
            }
            ExprKind::Parameter(index) => rex(RexType::DynamicParameter(DynamicParameter {
                r#type: Some(write_type(&expr.data_type, expr.nullable)),
                parameter_reference: *index,
            })),
            ExprKind::Compare { op, left, right } => {
                let arguments = vec![arg(left), arg(right)];
                self.call(compare_name(*op), arguments, expr)
            }
            ExprKind::And(list) => {
                let arguments = list.iter().map(arg).collect();
                self.call("and", arguments, expr)
            }
            ExprKind::Or(list) => {
                let arguments = list.iter().map(arg).collect();
                self.call("or", arguments, expr)
            }
            ExprKind::Coalesce(list) => {
                let arguments = list.iter().map(arg).collect();
                self.call("coalesce", arguments, expr)
            }
            ExprKind::Not(inner) => {
                let arguments = vec![arg(inner)];
                self.call("not", arguments, expr)
            }
            ExprKind::IsNull(inner) => {
                let arguments = vec![arg(inner)];
                self.call("is_null", arguments, expr)
            }
            ExprKind::Negate(inner) => {
                let arguments = vec![arg(inner)];
                self.call("negate", arguments, expr)
            }
            ExprKind::Lower(inner) => {
                let arguments = vec![arg(inner)];
                self.call("lower", arguments, expr)
            }
            ExprKind::Upper(inner) => {
                let arguments = vec![arg(inner)];
                self.call("upper", arguments, expr)
            }
            ExprKind::Length(inner) => {
                let name = if inner.data_type.is_text() { "char_length" } else { "octet_length" };
                let arguments = vec![arg(inner)];
                self.call(name, arguments, expr)
            }
            ExprKind::Arithmetic { op, left, right } => {
                let arguments = vec![arg(left), arg(right)];
                self.call(arithmetic_name(*op), arguments, expr)
            }
            ExprKind::Substring { value, start, length } => {
                let arguments = [value, start].into_iter().chain(length).map(|expr| arg(expr)).collect();
                self.call("substring", arguments, expr)
            }
            ExprKind::In { value, list, list_has_null } => {
                let derived = value.nullable || *list_has_null;
                let nulls = list_has_null.then_some(&Scalar::Null);
                let option = |scalar| rex(RexType::Literal(write_literal(scalar, &value.data_type)));
                let options = list.iter().chain(nulls).map(option).collect();
                let value = Some(Box::new(self.expression(value)));
                let node = rex(RexType::SingularOrList(Box::new(expression::SingularOrList { value, options })));
                Self::with_nullability(node, derived, expr)
            }
            ExprKind::Like { value: inner, pattern, escape, case_insensitive } => {
                let escape = escape.map(String::from).unwrap_or_default();
                let arguments = vec![arg(inner), value(text_literal(pattern)), value(text_literal(&escape))];
                let option =
                    || FunctionOption { name: "case_sensitivity".into(), preference: vec!["CASE_INSENSITIVE".into()] };
                let options = case_insensitive.then(option).into_iter().collect();
                self.call_with("like", arguments, options, expr)
            }
            ExprKind::Case { branches, otherwise } => {
                let derived = otherwise.as_ref().is_none_or(|otherwise| otherwise.nullable)
                    || branches.iter().any(|(_, then)| then.nullable);
                let ifs = branches.iter().map(|(when, then)| expression::if_then::IfClause {
                    r#if: Some(self.expression(when)),
                    then: Some(self.expression(then)),
                });
                let ifs = ifs.collect();
                let r#else = otherwise.as_ref().map(|otherwise| Box::new(self.expression(otherwise)));
                let node = rex(RexType::IfThen(Box::new(expression::IfThen { ifs, r#else })));
                Self::with_nullability(node, derived, expr)
            }
            ExprKind::Cast(inner) => Self::cast(self.expression(inner), expr),
            ExprKind::Extract { field, value } => {
                let (component, indexing) = extract_component(*field);
                let words = [Some(component), indexing].into_iter().flatten().map(word);
                let arguments = words.chain([arg(value)]).collect();
                self.call("extract", arguments, expr)
            }
            ExprKind::AddInterval { value: moved, months, days, microseconds } => {
                let interval = Interval { months: *months, days: *days, microseconds: *microseconds };
                let arguments = vec![arg(moved), value(rex(RexType::Literal(write_interval(interval))))];
                self.call("add", arguments, expr)
            }
        }
    }
}
