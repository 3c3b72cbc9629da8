//! Any bytes are a plan or a typed error; a plan that was accepted can be written and read again, bound and
//! explained. So with a filter that comes alone.
#![no_main]

use hidb::plan::substrait::{
    bind_parameters, filter_from_substrait, filter_to_substrait, from_substrait, parameter_types, table_name,
    to_substrait,
};
use hidb::{DataType, Field, Result, Scalar, Schema};
use libfuzzer_sys::fuzz_target;

/// The table of the seeds (`seeds.rs`).
fn schema(_: &str) -> Result<Schema> {
    let columns = [
        ("id", "int64", false),
        ("n", "int32", true),
        ("price", "decimal(15,2)", false),
        ("wide", "decimal(30,4)", true),
        ("d", "float64", true),
        ("name", "text", true),
        ("day", "date", true),
        ("at", "timestamp", true),
        ("flag", "boolean", true),
        ("v", "vector(2,f32)", true),
    ];
    let field = |(name, data_type, nullable): (&str, &str, bool)| {
        Field::new(name, data_type.parse::<DataType>().expect("a type"), nullable)
    };
    Schema::new(columns.into_iter().map(field).collect())
}

fuzz_target!(|bytes: &[u8]| {
    let _ = table_name(bytes);
    let table = schema("").expect("the schema is valid");
    if let Ok(filter) = filter_from_substrait(bytes, &table) {
        filter_from_substrait(&filter_to_substrait(&filter, &table), &table).expect("an accepted filter reads back");
    }
    let Ok(plan) = from_substrait(bytes, &schema) else { return };
    from_substrait(&to_substrait(&plan, &table), &schema).expect("an accepted plan reads back");
    if let Ok(types) = parameter_types(&plan) {
        bind_parameters(&plan, &vec![Scalar::Null; types.len()]).expect("NULL is of every type");
    }
});
