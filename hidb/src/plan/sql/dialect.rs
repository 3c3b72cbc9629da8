//! The SQL dialect, and the bound on the parser's work.
//!
//! Owns [`BoundedDialect`]. `sqlparser` tries several readings of some constructs (`cast(` as a cast, then
//! as a function of that name), and nests them: on malformed text its time doubles with every level. It
//! asks the dialect before each operand, which is where the work is counted.
//!
//! Invariants
//! - Parsing a text looks at no more operands than a fixed multiple of its tokens.

use sqlparser::ast::Expr;
use sqlparser::dialect::{Dialect, GenericDialect};
use sqlparser::parser::{Parser, ParserError};
use std::any::TypeId;
use std::cell::Cell;

/// Times a token may be looked at as the start of an operand, on average.
const READINGS_MAX: usize = 8;

/// The generic dialect without what a scan never needs (lambdas, maps, hints, FROM-first queries).
#[derive(Debug)]
pub(super) struct BoundedDialect {
    readings_left: Cell<usize>,
}

impl BoundedDialect {
    pub(super) fn new(tokens: usize) -> Self {
        BoundedDialect { readings_left: Cell::new(tokens.saturating_mul(READINGS_MAX).saturating_add(1_000)) }
    }
}

impl Dialect for BoundedDialect {
    fn dialect(&self) -> TypeId {
        TypeId::of::<GenericDialect>()
    }

    fn parse_prefix(&self, _parser: &mut Parser) -> Option<Result<Expr, ParserError>> {
        match self.readings_left.get().checked_sub(1) {
            Some(left) => {
                self.readings_left.set(left);
                None
            }
            // The one error that the parser does not answer with another attempt.
            None => Some(Err(ParserError::RecursionLimitExceeded)),
        }
    }

    fn is_delimited_identifier_start(&self, character: char) -> bool {
        GenericDialect.is_delimited_identifier_start(character)
    }

    fn is_identifier_start(&self, character: char) -> bool {
        GenericDialect.is_identifier_start(character)
    }

    fn is_identifier_part(&self, character: char) -> bool {
        GenericDialect.is_identifier_part(character)
    }

    fn supports_unicode_string_literal(&self) -> bool {
        true
    }

    fn supports_string_escape_constant(&self) -> bool {
        true
    }

    fn supports_group_by_expr(&self) -> bool {
        true
    }

    fn supports_filter_during_aggregation(&self) -> bool {
        true
    }

    fn supports_window_function_null_treatment_arg(&self) -> bool {
        true
    }

    fn allow_extract_custom(&self) -> bool {
        true
    }

    fn allow_extract_single_quotes(&self) -> bool {
        true
    }

    fn supports_extract_comma_syntax(&self) -> bool {
        true
    }

    fn supports_limit_comma(&self) -> bool {
        true
    }
}
