//! Between the crate's own types and their protobuf messages.
//!
//! Owns both directions for schemas, column types, scalars and errors. What comes from a peer is checked
//! as strictly as what comes from a person: a converted [`Schema`] keeps the invariants of
//! [`Schema::new`].
//!
//! Called by sessions on both sides and by the manifest, which stores schemas as `TableSchema`.

use crate::COLUMNS_MAX;
use crate::error::{Error, ErrorCode, Result};
use crate::order::{OrderKind, TableOrder};
use crate::proto::{self, TypeKind};
use crate::schema::{Field, Schema};
use crate::types::{DataType, Lane, Scalar, VectorElement};

/// A column type as its message.
pub fn type_to_proto(data_type: &DataType) -> proto::ColumnType {
    let (kind, a, b) = match *data_type {
        DataType::Boolean => (TypeKind::Boolean, 0, 0),
        DataType::Int16 => (TypeKind::Int16, 0, 0),
        DataType::Int32 => (TypeKind::Int32, 0, 0),
        DataType::Int64 => (TypeKind::Int64, 0, 0),
        DataType::Float32 => (TypeKind::Float32, 0, 0),
        DataType::Float64 => (TypeKind::Float64, 0, 0),
        DataType::Decimal { precision, scale } => (TypeKind::Decimal, precision.into(), scale.into()),
        DataType::Varchar(n) => (TypeKind::Varchar, n, 0),
        DataType::Text => (TypeKind::Text, 0, 0),
        DataType::Bytea => (TypeKind::Bytea, 0, 0),
        DataType::Timestamp { utc: false } => (TypeKind::Timestamp, 0, 0),
        DataType::Timestamp { utc: true } => (TypeKind::TimestampUtc, 0, 0),
        DataType::Date => (TypeKind::Date, 0, 0),
        DataType::Vector { dimension, element: VectorElement::F32 } => (TypeKind::VectorF32, dimension, 0),
        DataType::Vector { dimension, element: VectorElement::F16 } => (TypeKind::VectorF16, dimension, 0),
        DataType::Vector { dimension, element: VectorElement::I8 } => (TypeKind::VectorI8, dimension, 0),
        DataType::Vector { dimension, element: VectorElement::Bit } => (TypeKind::VectorBit, dimension, 0),
    };
    proto::ColumnType { kind: kind.into(), a, b }
}

/// A column type from its message; `InvalidSchema` if it is none.
pub fn type_from_proto(message: &proto::ColumnType) -> Result<DataType> {
    let invalid = || {
        Error::new(
            ErrorCode::InvalidSchema,
            format!("no column type has kind {}, a {}, b {}", message.kind, message.a, message.b),
        )
    };
    let vector = |element| DataType::Vector { dimension: message.a, element };
    let data_type = match TypeKind::try_from(message.kind).map_err(|_| invalid())? {
        TypeKind::Unspecified => return Err(invalid()),
        TypeKind::Boolean => DataType::Boolean,
        TypeKind::Int16 => DataType::Int16,
        TypeKind::Int32 => DataType::Int32,
        TypeKind::Int64 => DataType::Int64,
        TypeKind::Float32 => DataType::Float32,
        TypeKind::Float64 => DataType::Float64,
        TypeKind::Decimal => DataType::Decimal {
            precision: u8::try_from(message.a).map_err(|_| invalid())?,
            scale: u8::try_from(message.b).map_err(|_| invalid())?,
        },
        TypeKind::Varchar => DataType::Varchar(message.a),
        TypeKind::Text => DataType::Text,
        TypeKind::Bytea => DataType::Bytea,
        TypeKind::Timestamp => DataType::Timestamp { utc: false },
        TypeKind::TimestampUtc => DataType::Timestamp { utc: true },
        TypeKind::Date => DataType::Date,
        TypeKind::VectorF32 => vector(VectorElement::F32),
        TypeKind::VectorF16 => vector(VectorElement::F16),
        TypeKind::VectorI8 => vector(VectorElement::I8),
        TypeKind::VectorBit => vector(VectorElement::Bit),
    };
    if data_type.is_valid() { Ok(data_type) } else { Err(invalid()) }
}

/// A schema as its message.
pub fn schema_to_proto(schema: &Schema) -> proto::TableSchema {
    let columns = schema.fields().iter().map(|field| proto::Column {
        name: field.name.clone(),
        r#type: Some(type_to_proto(&field.data_type)),
        nullable: field.nullable,
    });
    proto::TableSchema { columns: columns.collect(), order: None }
}

/// A schema and the order of its rows as their message.
pub fn definition_to_proto(schema: &Schema, order: Option<&TableOrder>) -> proto::TableSchema {
    use proto::table_order::Kind;
    let order = order.map(|order| proto::TableOrder {
        kind: match order.kind() {
            OrderKind::Sorted => Kind::Sorted,
            OrderKind::Clustered => Kind::Clustered,
        }
        .into(),
        columns: order.columns().to_vec(),
    });
    proto::TableSchema { order, ..schema_to_proto(schema) }
}

/// The order of the rows of this schema from their message, checked as by [`TableOrder::new`].
pub fn order_from_proto(message: &proto::TableSchema, schema: &Schema) -> Result<Option<TableOrder>> {
    use proto::table_order::Kind;
    let Some(order) = &message.order else { return Ok(None) };
    let kind = match order.kind() {
        Kind::Sorted => OrderKind::Sorted,
        Kind::Clustered => OrderKind::Clustered,
        Kind::Unspecified => {
            let text = format!("rows have no order of kind {}", order.kind);
            return Err(Error::new(ErrorCode::InvalidSchema, text));
        }
    };
    TableOrder::new(kind, &order.columns, schema).map(Some)
}

/// A table's schema from its message, checked as by [`Schema::new`].
pub fn schema_from_proto(message: &proto::TableSchema) -> Result<Schema> {
    if message.columns.len() > COLUMNS_MAX {
        return Err(Error::new(
            ErrorCode::InvalidSchema,
            format!("{} columns: a table may have at most {COLUMNS_MAX}", message.columns.len()),
        ));
    }
    let field = |column: &proto::Column| {
        let message = column
            .r#type
            .as_ref()
            .ok_or_else(|| Error::new(ErrorCode::InvalidSchema, format!("column {:?} has no type", column.name)))?;
        Ok(Field::new(column.name.clone(), type_from_proto(message)?, column.nullable))
    };
    Schema::new(message.columns.iter().map(field).collect::<Result<_>>()?)
}

/// An error as its message.
pub fn error_to_proto(error: &Error) -> proto::Error {
    proto::Error { code: error.code as u32, message: error.message.clone(), ..Default::default() }
}

/// The `StaleSchema` error with the schema the client should use instead.
pub fn stale_schema_to_proto(error: &Error, current: &Schema) -> proto::Error {
    proto::Error {
        current_schema: Some(schema_to_proto(current)),
        current_schema_hash: current.hash(),
        ..error_to_proto(error)
    }
}

/// An error from its message; codes of later versions become `Internal`.
pub fn error_from_proto(message: &proto::Error) -> Error {
    Error::new(ErrorCode::from_number(message.code), message.message.clone())
}

/// A scalar as its message.
pub fn scalar_to_proto(scalar: &Scalar) -> proto::Value {
    use proto::value::Value;
    let value = match scalar {
        Scalar::Null => Value::Null(true),
        Scalar::Bool(v) => Value::Boolean(*v),
        Scalar::I64(v) => Value::Integer(*v),
        Scalar::I128(v) => Value::Decimal(v.to_le_bytes().to_vec().into()),
        Scalar::F64(v) => Value::Float(*v),
        Scalar::Bytes(v) => Value::Bytes(v.clone().into()),
    };
    proto::Value { value: Some(value) }
}

/// A scalar of this type from its message; `InvalidParameter` if it is not one.
pub fn scalar_from_proto(message: &proto::Value, data_type: &DataType) -> Result<Scalar> {
    use proto::value::Value;
    let wrong = |found: &str| {
        Error::new(ErrorCode::InvalidParameter, format!("a value of type {data_type} can't be given as {found}"))
    };
    let scalar = match message.value.as_ref().ok_or_else(|| wrong("nothing"))? {
        Value::Null(_) => return Ok(Scalar::Null),
        Value::Boolean(v) => Scalar::Bool(*v),
        Value::Integer(v) => match data_type.lane() {
            Lane::I128 => Scalar::I128(i128::from(*v)),
            _ => Scalar::I64(*v),
        },
        Value::Decimal(bytes) => {
            let bytes: [u8; 16] = bytes[..].try_into().map_err(|_| wrong("a decimal that is not 16 bytes"))?;
            let value = i128::from_le_bytes(bytes);
            match data_type.lane() {
                Lane::I64 => Scalar::I64(i64::try_from(value).map_err(|_| wrong("a decimal out of its range"))?),
                _ => Scalar::I128(value),
            }
        }
        Value::Float(v) => Scalar::F64(*v),
        Value::Bytes(bytes) => Scalar::Bytes(bytes.to_vec()),
    };
    if scalar_belongs_to(&scalar, data_type) { Ok(scalar) } else { Err(wrong(&format!("{scalar:?}"))) }
}

/// Whether the scalar is NULL or a value of the type: in its lane, in its range, of its length, UTF-8.
pub fn scalar_belongs_to(scalar: &Scalar, data_type: &DataType) -> bool {
    match (scalar, data_type.lane()) {
        (Scalar::Null, _) | (Scalar::Bool(_), Lane::Bool) => true,
        (Scalar::I64(v), Lane::I64) => data_type.i64_range().is_some_and(|(min, max)| (min..=max).contains(v)),
        (Scalar::I128(v), Lane::I128) => match data_type {
            DataType::Decimal { precision, .. } => v.unsigned_abs() < 10u128.pow(u32::from(*precision)),
            _ => false,
        },
        (Scalar::F64(v), Lane::F64) => *data_type == DataType::Float64 || v.is_nan() || f64::from(*v as f32) == *v,
        (Scalar::Bytes(bytes), Lane::Bytes) => match data_type {
            DataType::Text => std::str::from_utf8(bytes).is_ok(),
            DataType::Varchar(n) => std::str::from_utf8(bytes).is_ok_and(|text| text.chars().count() <= *n as usize),
            DataType::Vector { .. } => data_type.is_vector_value(bytes),
            _ => true,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    #[test]
    fn an_order_survives_its_message_and_a_foreign_one_is_checked() {
        let fields = vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Text, false)];
        let schema = Schema::new(fields).unwrap();
        for kind in [OrderKind::Sorted, OrderKind::Clustered] {
            let order = TableOrder::new(kind, &["b", "a"], &schema).unwrap();
            let message = definition_to_proto(&schema, Some(&order));
            assert_eq!(schema_from_proto(&message).unwrap(), schema);
            assert_eq!(order_from_proto(&message, &schema).unwrap(), Some(order));
        }
        assert_eq!(order_from_proto(&schema_to_proto(&schema), &schema).unwrap(), None);
        let foreign = |kind, column: &str| proto::TableSchema {
            order: Some(proto::TableOrder { kind, columns: vec![column.to_string()] }),
            ..schema_to_proto(&schema)
        };
        assert_eq!(order_from_proto(&foreign(0, "a"), &schema).unwrap_err().code, ErrorCode::InvalidSchema);
        assert_eq!(order_from_proto(&foreign(9, "a"), &schema).unwrap_err().code, ErrorCode::InvalidSchema);
        assert_eq!(order_from_proto(&foreign(1, "c"), &schema).unwrap_err().code, ErrorCode::UnknownColumn);
    }

    fn every_type() -> Vec<DataType> {
        let mut types: Vec<DataType> = [
            "boolean",
            "int16",
            "int32",
            "int64",
            "float32",
            "float64",
            "decimal(15,2)",
            "decimal(38,0)",
            "varchar(7)",
            "text",
            "bytea",
            "timestamp",
            "timestamptz",
            "date",
            "vector(3,f32)",
            "vector(4,f16)",
            "vector(12,bit)",
        ]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
        types.push(DataType::Vector { dimension: 9, element: VectorElement::I8 });
        types
    }

    #[test]
    fn schemas_survive_the_wire() {
        let fields = every_type().into_iter().enumerate().map(|(i, t)| Field::new(format!("c{i}"), t, i % 2 == 0));
        let schema = Schema::new(fields.collect()).unwrap();
        let bytes = schema_to_proto(&schema).encode_to_vec();
        let back = schema_from_proto(&proto::TableSchema::decode(&bytes[..]).unwrap()).unwrap();
        assert_eq!(back, schema);
        assert_eq!(back.hash(), schema.hash());
    }

    #[test]
    fn bad_types_and_schemas_are_refused() {
        for (kind, a, b) in [
            (0, 0, 0),
            (99, 0, 0),
            (7, 39, 0),
            (7, 300, 0),
            (7, 5, 6),
            (14, 0, 0),
            (17, 0, 0),
            (17, 65_536, 0),
            (8, 0, 0),
        ] {
            assert!(type_from_proto(&proto::ColumnType { kind, a, b }).is_err(), "{kind} {a} {b}");
        }
        assert!(schema_from_proto(&proto::TableSchema::default()).is_err());
        let untyped = proto::Column { name: "a".into(), r#type: None, nullable: true };
        assert!(schema_from_proto(&proto::TableSchema { columns: vec![untyped], order: None }).is_err());
    }

    #[test]
    fn errors_survive_the_wire() {
        for code in ErrorCode::ALL {
            let error = Error::new(*code, "what happened");
            assert_eq!(error_from_proto(&error_to_proto(&error)), error);
        }
    }

    #[test]
    fn values_that_do_not_belong_to_the_type_are_refused() {
        let cases = [
            (Scalar::I64(40_000), DataType::Int16),
            (Scalar::Bool(true), DataType::Int64),
            (Scalar::Bytes(vec![0xff]), DataType::Text),
            (Scalar::Bytes(b"four".to_vec()), DataType::Varchar(3)),
            (Scalar::Bytes(vec![0; 11]), DataType::Vector { dimension: 3, element: VectorElement::F32 }),
            (Scalar::Bytes(vec![0xff, 0x10]), DataType::Vector { dimension: 12, element: VectorElement::Bit }),
            (Scalar::I64(1000), DataType::Decimal { precision: 3, scale: 0 }),
            (Scalar::F64(0.1), DataType::Float32),
        ];
        for (scalar, data_type) in cases {
            let error = scalar_from_proto(&scalar_to_proto(&scalar), &data_type).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidParameter, "{scalar:?} as {data_type}");
        }
    }

    proptest! {
        #[test]
        fn scalars_survive_the_wire(integer in any::<i64>(), wide in -10i128.pow(37)..10i128.pow(37), float in any::<f64>(), text in ".*") {
            let cases = [
                (Scalar::Null, DataType::Date),
                (Scalar::Bool(integer > 0), DataType::Boolean),
                (Scalar::I64(integer), DataType::Int64),
                (Scalar::I64(integer), DataType::Timestamp { utc: true }),
                (Scalar::I128(wide), DataType::Decimal { precision: 38, scale: 4 }),
                (Scalar::F64(float), DataType::Float64),
                (Scalar::Bytes(text.clone().into_bytes()), DataType::Text),
            ];
            for (scalar, data_type) in cases {
                prop_assert_eq!(scalar_from_proto(&scalar_to_proto(&scalar), &data_type).unwrap(), scalar);
            }
        }

        #[test]
        fn arbitrary_messages_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(message) = proto::TableSchema::decode(&bytes[..]) {
                let _ = schema_from_proto(&message);
            }
            if let Ok(message) = proto::Value::decode(&bytes[..]) {
                for data_type in every_type() {
                    let _ = scalar_from_proto(&message, &data_type);
                }
            }
        }
    }
}
