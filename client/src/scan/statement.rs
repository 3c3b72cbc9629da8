//! Prepared statements: planned once by the cell, executed with parameters.
//!
//! Owns [`Statement`]. Called by engines.
//!
//! Invariant: a statement's number is used on the very session that gave it only. A cell that was started anew counts
//! sessions and statements from the beginning, so the number alone could name another statement.

use std::sync::Arc;

use hidb::frame::FrameKind;
use hidb::{DataType, Result, Scalar, proto};

use super::request::ScanRequest;
use super::stream::{Asked, ScanStream};
use crate::cache::{AnswerKey, SessionEpoch};
use crate::client::Client;
use crate::connection::Connection;

/// A prepared statement: planned once by the cell, executed with parameters.
#[derive(Clone, Debug)]
pub struct Statement {
    client: Client,
    source: Arc<ScanRequest>,
    state: Arc<tokio::sync::Mutex<Option<PreparedOn>>>,
    parameters: Arc<Vec<DataType>>,
}

/// In which session a statement is known under which number.
#[derive(Debug)]
pub(super) struct PreparedOn {
    session: SessionEpoch,
    id: u64,
    /// What it asks, but for the parameters.
    question: Arc<AnswerKey>,
}

/// Has the cell plan a question; with the types of its parameters.
pub(super) async fn prepare_on(
    client: &Client,
    connection: &Arc<Connection>,
    source: &ScanRequest,
) -> Result<(PreparedOn, proto::Prepared)> {
    let message = source.message(client, None, false).await?;
    let question = AnswerKey {
        table: message.table.clone(),
        schema_hash: message.schema_hash,
        plan: message.substrait_plan.clone(),
        parameters: Vec::new(),
        memory_bytes_max: 0,
    };
    let body = proto::Prepare {
        table: message.table,
        schema_hash: message.schema_hash,
        substrait_plan: message.substrait_plan,
    };
    let answer: proto::Prepared =
        connection.request(FrameKind::Prepare, &body, None, None)?.answer(FrameKind::Prepared).await?;
    let prepared = PreparedOn { session: connection.epoch(), id: answer.statement_id, question: Arc::new(question) };
    Ok((prepared, answer))
}

impl Statement {
    pub(super) fn new(
        client: Client,
        source: ScanRequest,
        prepared: PreparedOn,
        parameters: Vec<DataType>,
    ) -> Statement {
        Statement {
            client,
            source: Arc::new(source),
            state: Arc::new(tokio::sync::Mutex::new(Some(prepared))),
            parameters: Arc::new(parameters),
        }
    }

    /// The types of the parameters, in order.
    pub fn parameters(&self) -> &[DataType] {
        &self.parameters
    }

    /// Runs the statement; prepares it again when the connection or the cell's plan cache changed.
    ///
    /// # Errors
    /// `InvalidParameter` when values are missing or of the wrong type; those of [`Client::scan`].
    pub async fn execute(&self, parameters: &[Scalar]) -> Result<ScanStream> {
        ScanStream::open(Asked::statement(self, parameters)).await
    }

    /// Tells the cell that the statement is not needed any more.
    pub async fn close(self) -> Result<()> {
        if let Some(prepared) = self.state.lock().await.take() {
            let connection = self.client.connection().await?;
            if connection.epoch() == prepared.session {
                let body = proto::CloseStatement { statement_id: prepared.id };
                let done = connection.request(FrameKind::CloseStatement, &body, None, None)?;
                done.answer::<proto::Done>(FrameKind::Done).await?;
            }
        }
        Ok(())
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn source(&self) -> &ScanRequest {
        &self.source
    }

    /// Its number in this connection's session, and what it asks; prepared now if it is not yet.
    pub(super) async fn prepared_on(&self, connection: &Arc<Connection>) -> Result<(u64, Arc<AnswerKey>)> {
        let mut state = self.state.lock().await;
        if let Some(prepared) = state.as_ref()
            && prepared.session == connection.epoch()
        {
            return Ok((prepared.id, prepared.question.clone()));
        }
        let (prepared, _) = prepare_on(&self.client, connection, &self.source).await?;
        let known = (prepared.id, prepared.question.clone());
        *state = Some(prepared);
        Ok(known)
    }

    /// It has to be prepared again.
    pub(super) async fn forget(&self) {
        *self.state.lock().await = None;
    }
}
