//! The adapters for tokio and glommio: two tasks play ping-pong.

use verbs_shim::verbs::WcOpcode;
use verbs_shim::{
    Completion, CompletionQueue, ConnectOptions, Context, OpenOptions, Progress, ProtectionDomain, QueuePair,
    QueuePairOptions, Receive, SendRequest,
};

const ROUNDS: usize = 200;

struct Player {
    domain: ProtectionDomain,
    queue_pair: QueuePair,
    queue: CompletionQueue,
}

fn players(progress: Progress) -> [Player; 2] {
    let make = || {
        let options = OpenOptions { progress, ..OpenOptions::default() };
        let context = Context::open("soft:127.0.0.1", &options).unwrap();
        let domain = context.create_domain().unwrap();
        let queue = context.create_completion_queue(256).unwrap();
        let queue_pair = domain.create_queue_pair(&queue, &queue, &QueuePairOptions::default()).unwrap();
        Player { domain, queue_pair, queue }
    };
    let (a, b) = (make(), make());
    a.queue_pair.connect(&b.queue_pair.endpoint(), &ConnectOptions::default()).unwrap();
    b.queue_pair.connect(&a.queue_pair.endpoint(), &ConnectOptions::default()).unwrap();
    for player in [&a, &b] {
        player.queue_pair.post_receive(Receive::new(player.domain.allocate(8).unwrap())).unwrap();
    }
    [a, b]
}

impl Player {
    fn serve(&self, round: usize) {
        let mut buffer = self.domain.allocate(8).unwrap();
        buffer.copy_from_slice(&(round as u64).to_ne_bytes());
        self.queue_pair.post_send(SendRequest::send(buffer)).unwrap();
    }

    /// Handles completions: counts the messages, and answers each but the last one of the game.
    fn play(&self, done: &mut Vec<Completion>, received: &mut usize, acknowledged: &mut usize, first: bool) {
        for completion in done.drain(..) {
            assert_eq!(completion.status.name(), "IBV_WC_SUCCESS");
            if completion.opcode == WcOpcode::Send {
                *acknowledged += 1;
                continue;
            }
            let buffer = completion.buffer.unwrap();
            assert_eq!(buffer[..], (*received as u64).to_ne_bytes());
            self.queue_pair.post_receive(Receive::new(buffer)).unwrap();
            *received += 1;
            if !first {
                self.serve(*received - 1);
            } else if *received < ROUNDS {
                self.serve(*received);
            }
        }
    }
}

#[test]
fn tokio_tasks_sleep_until_something_completes() {
    for progress in [Progress::Thread, Progress::Polled] {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let tasks = players(progress).into_iter().enumerate().map(|(index, player)| {
                tokio::spawn(async move {
                    let mut completions = verbs_shim::tokio::Completions::new(player.queue.clone()).unwrap();
                    let (mut done, mut received, mut acknowledged) = (Vec::new(), 0, 0);
                    if index == 0 {
                        player.serve(0);
                    }
                    while received < ROUNDS || acknowledged < ROUNDS {
                        completions.next(&mut done).await.unwrap();
                        player.play(&mut done, &mut received, &mut acknowledged, index == 0);
                    }
                    // What the other still waits for leaves when the queue pair is dropped.
                })
            });
            let tasks: Vec<_> = tasks.collect();
            for task in tasks {
                let patience = std::time::Duration::from_secs(30);
                tokio::time::timeout(patience, task).await.expect("a game that ends").unwrap();
            }
        });
    }
}

#[test]
fn glommio_tasks_share_an_executor_with_the_device() {
    let executor = glommio::LocalExecutorBuilder::default().spawn(|| async {
        let tasks = players(Progress::Polled).into_iter().enumerate().map(|(index, player)| {
            glommio::spawn_local(async move {
                let (mut done, mut received, mut acknowledged) = (Vec::new(), 0, 0);
                if index == 0 {
                    player.serve(0);
                }
                while received < ROUNDS || acknowledged < ROUNDS {
                    verbs_shim::glommio::next(&player.queue, &mut done).await.unwrap();
                    player.play(&mut done, &mut received, &mut acknowledged, index == 0);
                }
                received
            })
        });
        let tasks: Vec<_> = tasks.collect();
        let mut rounds = 0;
        for task in tasks {
            rounds += task.await;
        }
        rounds
    });
    assert_eq!(executor.unwrap().join().unwrap(), 2 * ROUNDS);
}
