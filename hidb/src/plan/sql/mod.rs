//! SQL text to plans.
//!
//! Owns the way from text (a predicate, the parts of a scan, a whole SELECT over one table) to
//! [`ScanPlan`]. `sqlparser` makes the syntax tree; `expression` types it through `plan::build`; `select`
//! arranges aggregation, outputs and sort keys; `literal` reads types, numbers and intervals.
//!
//! Invariants
//! - Any text gives a plan or a typed error: never a panic, and never a deeper recursion than the limits
//!   below allow (the syntax tree is dropped recursively, so its depth is bounded before it is built).
//! - Nothing in the text is ignored: a clause that a cell can't run is refused by name.
//!
//! Called by the client, the command line and tests.

mod dialect;
mod expression;
mod literal;
mod select;

use super::expr::Expr;
use super::scan::ScanPlan;
use super::{EXPRESSION_DEPTH_MAX, build};
use crate::error::{Error, ErrorCode, Result};
use crate::schema::Schema;
use dialect::BoundedDialect;
use expression::{Scope, condition};
use sqlparser::ast;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, Word};

/// The longest text that is parsed, in bytes.
pub const SQL_TEXT_BYTES_MAX: usize = 1 << 20;
/// The most operators in one text, signs of numbers in lists left out. Chains of operators nest in the syntax tree.
pub const SQL_OPERATORS_MAX: usize = 2_000;
/// The deepest nesting of parentheses and function calls.
pub const SQL_NESTING_MAX: usize = 40;

/// A scan as the command line gives it: each part is SQL text of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScanText {
    /// The table's name.
    pub table: String,
    /// A predicate, as after WHERE.
    pub filter: Option<String>,
    /// Select items (each string may hold several, separated by commas). Empty: all columns, or the
    /// group keys when there is an aggregation.
    pub select: Vec<String>,
    /// More select items, by custom the aggregates: `sum(x) as total`.
    pub aggregates: Vec<String>,
    /// Group keys: expressions, output names or positions.
    pub group_by: Vec<String>,
    /// Sort keys: expressions, output names or positions, with ASC, DESC, NULLS FIRST, NULLS LAST.
    pub order_by: Vec<String>,
    /// Rows kept.
    pub limit: Option<u64>,
    /// Rows skipped before.
    pub offset: u64,
}

/// Reads a predicate over a table's columns.
pub fn parse_predicate(text: &str, schema: &Schema) -> Result<Expr> {
    let tree = Source::new().parse(text, |parser| parser.parse_expr())?;
    let expr = condition("a predicate", Scope::new(schema, "").row_expression(&tree)?, &tree)?;
    build::check_limits([&expr])?;
    Ok(expr)
}

/// Reads one expression (without aggregates) over a table's columns.
pub fn parse_expr(text: &str, schema: &Schema) -> Result<Expr> {
    let tree = Source::new().parse(text, |parser| parser.parse_expr())?;
    let expr = Scope::new(schema, "").row_expression(&tree)?;
    build::check_limits([&expr])?;
    Ok(expr)
}

/// Plans a scan that is given in parts.
pub fn parse_scan(scan: &ScanText, schema: &Schema) -> Result<ScanPlan> {
    let mut source = Source::new();
    let filter = scan.filter.as_ref().map(|text| source.parse(text, |parser| parser.parse_expr())).transpose()?;
    let list = |source: &mut Source, texts: &[String]| -> Result<Vec<ast::SelectItem>> {
        let mut items = Vec::new();
        for text in texts {
            items.extend(
                source.parse(text, |parser| parser.parse_comma_separated(|parser| parser.parse_select_item()))?,
            );
        }
        Ok(items)
    };
    let mut items = list(&mut source, &scan.select)?;
    let aggregates = list(&mut source, &scan.aggregates)?;
    let mut group_by = Vec::new();
    for text in &scan.group_by {
        group_by.extend(source.parse(text, |parser| parser.parse_comma_separated(|parser| parser.parse_expr()))?);
    }
    if items.is_empty() && (!group_by.is_empty() || !aggregates.is_empty()) {
        items.extend(group_by.iter().cloned().map(ast::SelectItem::UnnamedExpr));
    } else if items.is_empty() {
        items.push(ast::SelectItem::Wildcard(ast::WildcardAdditionalOptions::default()));
    }
    items.extend(aggregates);
    let mut order_by = Vec::new();
    for text in &scan.order_by {
        order_by
            .extend(source.parse(text, |parser| parser.parse_comma_separated(|parser| parser.parse_order_by_expr()))?);
    }
    let parts = select::Parts {
        items: &items,
        filter: filter.as_ref(),
        group_by: group_by.iter().collect(),
        having: None,
        order_by: order_by.iter().collect(),
        distinct: false,
        offset: scan.offset,
        limit: scan.limit,
    };
    select::plan(&parts, &scan.table, &Scope::new(schema, &scan.table), schema)
}

/// Plans `SELECT ... FROM table [WHERE ...] [GROUP BY ...] [HAVING ...] [ORDER BY ...] [LIMIT ...]`.
/// `resolve` gives the schema of the table it names.
pub fn parse_query(sql: &str, resolve: &dyn Fn(&str) -> Result<Schema>) -> Result<ScanPlan> {
    let query = Source::new().parse(sql, |parser| {
        let query = parser.parse_query()?;
        while parser.consume_token(&Token::SemiColon) {}
        Ok(query)
    })?;
    select::plan_query(&query, resolve)
}

/// Hands out the numbers of `?` parameters over all the texts of one plan.
struct Source {
    parameters: u32,
}

impl Source {
    fn new() -> Self {
        Source { parameters: 0 }
    }

    /// Tokenizes, checks the limits, and parses all of the text.
    fn parse<T>(&mut self, text: &str, parse: impl FnOnce(&mut Parser) -> Result<T, ParserError>) -> Result<T> {
        if text.len() > SQL_TEXT_BYTES_MAX {
            return Err(Error::new(
                ErrorCode::LimitExceeded,
                format!("{} bytes of SQL text: at most {SQL_TEXT_BYTES_MAX} are parsed", text.len()),
            ));
        }
        let mut tokens = Tokenizer::new(&BoundedDialect::new(0), text)
            .tokenize_with_location()
            .map_err(|error| syntax(text, &error.to_string()))?;
        self.check_tokens(text, &mut tokens)?;
        let dialect = BoundedDialect::new(tokens.len());
        let mut parser =
            Parser::new(&dialect).with_recursion_limit(SQL_NESTING_MAX + 10).with_tokens_with_locations(tokens);
        let tree = parse(&mut parser).map_err(|error| match error {
            ParserError::TokenizerError(message) | ParserError::ParserError(message) => syntax(text, &message),
            ParserError::RecursionLimitExceeded => nested(),
        })?;
        let rest = parser.peek_token();
        if rest.token != Token::EOF {
            let place = rest.span.start;
            return Err(syntax(
                text,
                &format!("unexpected {} at Line: {}, Column: {}", rest.token, place.line, place.column),
            ));
        }
        Ok(tree)
    }

    fn check_tokens(&mut self, text: &str, tokens: &mut [TokenWithSpan]) -> Result<()> {
        let (mut operators, mut nesting) = (0usize, 0usize);
        let mut before = Keyword::NoKeyword;
        let mut place = Place::Elsewhere;
        for TokenWithSpan { token, .. } in tokens {
            let keyword = match token {
                Token::Word(word) if word.quote_style.is_none() => word.keyword,
                Token::Whitespace(_) => before,
                _ => Keyword::NoKeyword,
            };
            let previous = std::mem::replace(&mut before, keyword);
            let at = place;
            place = at.after(token);
            match token {
                // The sign of a number in a list nests nothing.
                Token::Number(..) if at == Place::Signed => operators -= 1,
                Token::Placeholder(name) if name == "?" => {
                    self.parameters += 1;
                    *name = format!("${}", self.parameters);
                }
                // The parser backtracks and recurses over these without its own limits; a scan has no use for them.
                Token::Word(_) if keyword == Keyword::SELECT && nesting > 0 => return Err(nested_query()),
                Token::LParen if previous == Keyword::FROM && nesting == 0 => return Err(nested_query()),
                Token::Word(_) if keyword == Keyword::INTERVAL && previous == Keyword::INTERVAL => {
                    return Err(syntax(text, "INTERVAL after INTERVAL"));
                }
                Token::Lt if matches!(previous, Keyword::ARRAY | Keyword::STRUCT | Keyword::MAP) => {
                    return Err(syntax(text, "nested types are not supported:"));
                }
                Token::LParen | Token::LBracket | Token::LBrace => {
                    nesting += 1;
                    if nesting > SQL_NESTING_MAX {
                        return Err(nested());
                    }
                    // int[][][] nests without nested brackets.
                    operators += usize::from(*token != Token::LParen);
                }
                Token::RParen | Token::RBracket | Token::RBrace => nesting = nesting.saturating_sub(1),
                Token::Word(word) if !is_operator(word) => {}
                Token::Number(..)
                | Token::SingleQuotedString(_)
                | Token::DoubleQuotedString(_)
                | Token::NationalStringLiteral(_)
                | Token::EscapedStringLiteral(_)
                | Token::HexStringLiteral(_)
                | Token::Placeholder(_)
                | Token::Comma
                | Token::Whitespace(_)
                | Token::EOF => {}
                _ => operators += 1,
            }
        }
        if operators > SQL_OPERATORS_MAX {
            return Err(Error::new(
                ErrorCode::LimitExceeded,
                format!(
                    "{operators} operators in {:?}: at most {SQL_OPERATORS_MAX}; write long lists of equalities with IN",
                    fragment(text)
                ),
            ));
        }
        Ok(())
    }
}

/// Where a token stands, as far as it matters for signs of numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// After `(` or `,`.
    ItemStart,
    /// After a sign at the start of an item.
    Signed,
    Elsewhere,
}

impl Place {
    /// The place of what follows `token`; blanks and comments change nothing.
    fn after(self, token: &Token) -> Place {
        match (token, self) {
            (Token::Whitespace(_), place) => place,
            (Token::LParen | Token::Comma, _) => Place::ItemStart,
            (Token::Minus | Token::Plus, Place::ItemStart) => Place::Signed,
            _ => Place::Elsewhere,
        }
    }
}

/// Keywords that continue an expression to their left, or open a CASE (which nests without parentheses).
fn is_operator(word: &Word) -> bool {
    word.quote_style.is_none()
        && !matches!(
            word.keyword,
            Keyword::NoKeyword | Keyword::DATE | Keyword::TIMESTAMP | Keyword::TRUE | Keyword::FALSE
        )
}

fn nested_query() -> Error {
    Error::new(
        ErrorCode::UnsupportedPlan,
        "nested queries (WITH, UNION, EXISTS, IN (SELECT ...), parentheses after FROM) are not supported: scan one plain table",
    )
}

fn nested() -> Error {
    Error::new(
        ErrorCode::LimitExceeded,
        format!(
            "SQL text nests too deeply to be read: at most {SQL_NESTING_MAX} parentheses and {EXPRESSION_DEPTH_MAX} operators"
        ),
    )
}

fn syntax(text: &str, message: &str) -> Error {
    let message = message.trim_start_matches("sql parser error: ");
    Error::new(ErrorCode::Syntax, format!("{message} in {:?}", fragment(text)))
}

/// The beginning of a text, for messages.
fn fragment(text: &str) -> String {
    const SHOWN: usize = 100;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests;
