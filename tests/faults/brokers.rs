//! The broker, one server or a cluster of three, and the links to it.
//!
//! Owns how a member of a cluster is killed and brought back without breaking what a cluster promises: one at a time, and one
//! that has lost its disk only after the other two have agreed without it. With an empty disk and an old vote it could else
//! help to forget what it had helped to store.

use super::chaos::{Kill, Shared, Stage};
use super::dice::Dice;
use super::harness::{Cluster, ELECTION, Link, Proxy, SOON, TestBroker, wait_until};
use tokio::time::sleep;

/// The servers of a run.
pub enum Brokers {
    One(Box<TestBroker>),
    Three(Cluster),
}

impl Brokers {
    pub async fn start(is_cluster: bool) -> Brokers {
        if is_cluster {
            Brokers::Three(Cluster::start().await)
        } else {
            Brokers::One(Box::new(TestBroker::start().await))
        }
    }

    /// The addresses of all servers, as a list with commas.
    pub fn url(&self) -> String {
        match self {
            Brokers::One(broker) => broker.url(),
            Brokers::Three(cluster) => cluster.urls().join(","),
        }
    }

    /// How many copies of each stream there are to be.
    pub fn copies(&self) -> usize {
        match self {
            Brokers::One(_) => 1,
            Brokers::Three(_) => 3,
        }
    }

    /// A link of its own to each of the servers.
    pub async fn wire(&self) -> Wire {
        let ports = match self {
            Brokers::One(broker) => vec![broker.server.port()],
            Brokers::Three(cluster) => cluster.servers.iter().map(|server| server.port()).collect(),
        };
        Wire(futures::future::join_all(ports.into_iter().map(Proxy::start)).await)
    }

    /// Waits until every copy of every stream says the same.
    pub async fn whole(&self) {
        if let Brokers::Three(cluster) = self {
            cluster.whole().await;
        }
    }
}

/// The way of one program to the broker: what happens to it happens to all its connections.
pub struct Wire(Vec<Proxy>);

impl Wire {
    /// The addresses behind which the servers are, as a list with commas.
    pub fn url(&self) -> String {
        self.0.iter().map(Proxy::url).collect::<Vec<_>>().join(",")
    }

    pub fn set(&self, link: Link) {
        self.0.iter().for_each(|proxy| proxy.set(link));
    }
}

/// Carries out the kills, and gives the servers back, all of them running.
pub async fn haunt(mut brokers: Brokers, kills: Vec<Kill>, seed: u64, shared: Shared) -> Brokers {
    let mut dice = Dice::new(seed, "servers");
    for kill in kills {
        if !shared.wait(kill.when).await {
            break;
        }
        match &mut brokers {
            Brokers::One(broker) => {
                broker.server.kill().await.unwrap();
                shared.count("broker_kill");
                sleep(kill.down).await;
                while let Err(error) = broker.server.restart().await {
                    eprintln!("the broker does not come back yet: {error}");
                }
            }
            Brokers::Three(cluster) => lose_member(cluster, &kill, &mut dice, &shared).await,
        }
    }
    shared.reached(Stage::Over).await;
    brokers
}

async fn lose_member(cluster: &mut Cluster, kill: &Kill, dice: &mut Dice, shared: &Shared) {
    let (member, keeps_disk) = (dice.below(cluster.servers.len()), dice.percent(60));
    cluster.servers[member].kill().await.unwrap();
    shared.count("server_kill");
    sleep(kill.down).await;
    if !keeps_disk {
        wait_until(ELECTION + SOON, "the other two to agree", async || cluster.lacks(2).await.map_or(Ok(()), Err))
            .await;
        cluster.lose_disk(member);
        shared.count("server_disk_lost");
    }
    while let Err(error) = cluster.servers[member].restart().await {
        eprintln!("s{member} does not come back yet: {error}");
    }
    cluster.whole().await;
}
