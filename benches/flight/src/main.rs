//! Arrow Flight (the `arrow-flight` crate, gRPC over plain TCP) serving and fetching record batches from memory.
//!
//! What `benches/transports` compares Heliostat's bulk results with. `serve` loads an Arrow IPC file, prints its address
//! and serves it to every DoGet; `fetch` gets it once for each line of standard input and answers with a JSON line.

use std::fs::File;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use arrow_array::RecordBatch;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse,
    PollInfo, PutResult, SchemaResult, Ticket,
};
use clap::Parser;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

/// No limit: a batch is one message.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Arrow Flight from memory to memory.
#[derive(Parser)]
enum Command {
    /// Serve the batches of an Arrow IPC file on a free port of 127.0.0.1.
    Serve {
        /// The file.
        file: PathBuf,
    },
    /// Fetch them, once for each line of standard input.
    Fetch {
        /// As `serve` printed it.
        address: String,
    },
}

struct Memory(Arc<Vec<RecordBatch>>);

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn nothing<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("only DoGet"))
}

#[tonic::async_trait]
impl FlightService for Memory {
    type HandshakeStream = Answer<HandshakeResponse>;
    type ListFlightsStream = Answer<FlightInfo>;
    type DoGetStream = Answer<FlightData>;
    type DoPutStream = Answer<PutResult>;
    type DoExchangeStream = Answer<FlightData>;
    type DoActionStream = Answer<arrow_flight::Result>;
    type ListActionsStream = Answer<ActionType>;

    async fn do_get(&self, _: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let batches = self.0.clone();
        let batches = stream::iter((0..batches.len()).map(move |at| Ok::<_, FlightError>(batches[at].clone())));
        let data = FlightDataEncoderBuilder::new().with_max_flight_data_size(MESSAGE_BYTES_MAX).build(batches);
        Ok(Response::new(Box::pin(data.map_err(Status::from))))
    }

    async fn handshake(&self, _: Request<Streaming<HandshakeRequest>>) -> Result<Response<Self::HandshakeStream>, Status> {
        nothing()
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        nothing()
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        nothing()
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        nothing()
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        nothing()
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        nothing()
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        nothing()
    }

    async fn do_action(&self, _: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        nothing()
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        nothing()
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    match Command::parse() {
        Command::Serve { file } => {
            let reader = File::open(&file).with_context(|| file.display().to_string())?;
            let reader = arrow_ipc::reader::FileReader::try_new_buffered(reader, None)?;
            let batches: Vec<RecordBatch> = reader.collect::<Result<_, _>>()?;
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            println!("listening on {}", listener.local_addr()?);
            let service = FlightServiceServer::new(Memory(Arc::new(batches))).max_encoding_message_size(MESSAGE_BYTES_MAX);
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            tonic::transport::Server::builder().tcp_nodelay(true).add_service(service).serve_with_incoming(incoming).await?;
        }
        Command::Fetch { address } => {
            let channel = tonic::transport::Endpoint::new(format!("http://{address}"))?
                .tcp_nodelay(true)
                // A window of 64 KiB, the default, would be unfair.
                .initial_stream_window_size(16 << 20)
                .initial_connection_window_size(16 << 20)
                .connect()
                .await?;
            let mut client = FlightServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            for line in std::io::stdin().lock().lines() {
                line?;
                let started = Instant::now();
                let answer = client.do_get(Ticket::new("all")).await?.into_inner();
                let mut batches = FlightRecordBatchStream::new_from_flight_data(answer.map_err(FlightError::from));
                let (mut rows, mut bytes) = (0, 0);
                while let Some(batch) = batches.next().await.transpose()? {
                    rows += batch.num_rows();
                    bytes += batch.columns().iter().map(|column| column.get_buffer_memory_size()).sum::<usize>();
                }
                let ms = started.elapsed().as_secs_f64() * 1e3;
                let mut output = std::io::stdout().lock();
                writeln!(output, "{{\"ms\": {ms}, \"rows\": {rows}, \"bytes\": {bytes}}}")?;
                output.flush()?;
            }
        }
    }
    Ok(())
}
