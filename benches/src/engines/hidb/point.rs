//! `ioengine=hidb-point`: each op executes a statement that was prepared once; the numbers in its predicate change.

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use heliostat_client::{ScanRequest, ScanText, Statement};
use heliostat_fio::engine::{Engine, EngineContext, EngineError, EngineFacts, EngineKind, EngineOption, Op};
use hidb::{DataType, Error, Scalar};

use super::answer::Expected;
use super::scan::{COLUMNS, EXPECT, WHERE, place, predicate, split};
use super::template::{Template, Values};
use super::{Options, QUESTIONS, client_options, connect};
use crate::engines::tasks::{Ask, TaskEngine, Tasks};

/// The point read engine.
pub struct HidbPoint;

impl EngineKind for HidbPoint {
    fn name(&self) -> &'static str {
        "hidb-point"
    }

    fn help(&self) -> &'static str {
        "Point reads from a cell by a prepared statement"
    }

    fn facts(&self) -> EngineFacts {
        QUESTIONS
    }

    fn options(&self) -> &'static [EngineOption] {
        client_options![WHERE, COLUMNS, EXPECT]
    }

    fn check(&self, options: &[(String, String)]) -> Result<(), String> {
        let options = Options(options);
        options.connection()?;
        options.table()?;
        wanted(options).map(drop)
    }

    fn open(&self, context: &EngineContext) -> Result<Box<dyn Engine>, EngineError> {
        let options = Options(&context.options);
        let (predicate, expected) = wanted(options).map_err(|error| context.error(error))?;
        let text = ScanText {
            table: options.table().map_err(|error| context.error(error))?.to_string(),
            select: options.get("columns").map(split).unwrap_or_default(),
            filter: Some(predicate.with_parameters()),
            ..ScanText::default()
        };
        let tasks = Tasks::new()?;
        let client = connect(context, &tasks)?;
        let statement = tasks.run(client.prepare(ScanRequest::text(text)))?;
        let scale = |parameter: &DataType| {
            let wrong = || format!("a variable stands where a {parameter} must stand: they are whole numbers");
            Scale::of(*parameter).ok_or_else(wrong)
        };
        let scales = statement.parameters().iter().map(scale).collect::<Result<_, _>>();
        let scales = scales.map_err(|error| context.error(error))?;
        let values = Values::new(context.seed);
        Ok(Box::new(TaskEngine::new(PointReads { statement, predicate, scales, values, expected }, tasks)))
    }
}

/// The predicate of a job, which must have one.
fn wanted(options: Options<'_>) -> Result<(Template, Expected), String> {
    let (predicate, expected) = predicate(options)?;
    let missing = || "where= is missing: which rows does a point read read?".to_string();
    Ok((predicate.ok_or_else(missing)?, expected))
}

/// How a whole number becomes a parameter: times a power of ten for decimals, as days for dates.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scale {
    Narrow(i64),
    Wide(i128),
    Float,
}

impl Scale {
    /// `None`: the type has no numbers.
    fn of(data_type: DataType) -> Option<Scale> {
        use DataType::*;
        match data_type {
            Int16 | Int32 | Int64 | Date => Some(Scale::Narrow(1)),
            Decimal { precision: ..=18, scale } => Some(Scale::Narrow(10i64.pow(scale.into()))),
            Decimal { scale, .. } => Some(Scale::Wide(10i128.pow(scale.into()))),
            Float32 | Float64 => Some(Scale::Float),
            _ => None,
        }
    }

    fn scalar(self, value: i64) -> Scalar {
        match self {
            Scale::Narrow(factor) => Scalar::I64(value.saturating_mul(factor)),
            Scale::Wide(factor) => Scalar::I128(i128::from(value).saturating_mul(factor)),
            Scale::Float => Scalar::F64(value as f64),
        }
    }
}

struct PointReads {
    statement: Statement,
    predicate: Template,
    scales: Vec<Scale>,
    values: Values,
    expected: Expected,
}

impl Ask for PointReads {
    fn ask(&mut self, op: &Op) -> LocalBoxFuture<'static, Result<u64, Error>> {
        let values = self.predicate.values(&mut self.values, place(op));
        let parameters: Vec<Scalar> = values.zip(&self.scales).map(|(value, scale)| scale.scalar(value)).collect();
        let (statement, expected) = (self.statement.clone(), self.expected.clone());
        async move { expected.take(statement.execute(&parameters).await?).await }.boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_parameters_of_the_column_they_are_compared_with() {
        let scalar = |data_type, value| Scale::of(data_type).map(|scale| scale.scalar(value));
        assert_eq!(scalar(DataType::Int64, -7), Some(Scalar::I64(-7)));
        assert_eq!(scalar(DataType::Decimal { precision: 12, scale: 2 }, 7), Some(Scalar::I64(700)));
        assert_eq!(scalar(DataType::Decimal { precision: 30, scale: 3 }, 7), Some(Scalar::I128(7000)));
        assert_eq!(scalar(DataType::Float32, 7), Some(Scalar::F64(7.0)));
        assert_eq!(scalar(DataType::Text, 7), None);
    }
}
