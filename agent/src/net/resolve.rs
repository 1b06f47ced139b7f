//! From an address of the appliance (`host:port`) to socket addresses, as this machine's `/etc/hosts` and
//! `/etc/resolv.conf` say.
//!
//! Not by the C library: the agent is one static program for any Linux, and glibc's resolver loads whatever
//! `/etc/nsswitch.conf` names out of the machine's own glibc, whose version may be another. The price is that names
//! which only such a module knows (mDNS, a directory) are not found.
//!
//! Both files are read again for each dial, which is rare: they change when networks do.

use std::{io, net::SocketAddr};

use hickory_resolver::{
    Resolver,
    config::{LookupIpStrategy, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    system_conf::read_system_conf,
};

/// All addresses of `host`, with `port`.
pub(super) async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    // A machine without a name server may know the name by its /etc/hosts.
    let (config, options) = read_system_conf()
        .unwrap_or_else(|_| (ResolverConfig::from_name_servers(Vec::new()), ResolverOpts::default()));
    ask(host, port, config, options).await.map_err(io::Error::other)
}

async fn ask(
    host: &str,
    port: u16,
    config: ResolverConfig,
    mut options: ResolverOpts,
) -> Result<Vec<SocketAddr>, NetError> {
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    let provider = TokioRuntimeProvider::default();
    let resolver = Resolver::builder_with_config(config, provider).with_options(options).build()?;
    let found = resolver.lookup_ip(host).await?;
    Ok(found.iter().map(|address| SocketAddr::new(address, port)).collect())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use hickory_resolver::{
        config::{ConnectionConfig, NameServerConfig},
        proto::{
            op::{Message, MessageType, ResponseCode},
            rr::{RData, Record, RecordType, rdata::A},
        },
    };
    use tokio::net::UdpSocket;

    use super::*;

    /// A name server that knows one name, for as long as the test runs.
    async fn name_server(knows: &'static str, address: Ipv4Addr) -> ResolverConfig {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let question = Message::from_vec(&buffer[..length]).unwrap();
                let query = question.queries[0].clone();
                let mut answer =
                    Message::new(question.metadata.id, MessageType::Response, question.metadata.op_code);
                answer.add_query(query.clone());
                if query.name().to_ascii() != knows {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                } else if query.query_type() == RecordType::A {
                    answer.add_answer(Record::from_rdata(query.name().clone(), 60, RData::A(A(address))));
                }
                socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        });
        let mut connection = ConnectionConfig::udp();
        connection.port = port;
        let server = NameServerConfig::new(IpAddr::V4(Ipv4Addr::LOCALHOST), true, vec![connection]);
        ResolverConfig::from_parts(None, Vec::new(), vec![server])
    }

    #[tokio::test]
    async fn a_name_is_asked_of_the_name_server_that_is_configured() {
        let config = name_server("dr.contoso.test.", Ipv4Addr::new(192, 0, 2, 7)).await;
        let found = ask("dr.contoso.test", 443, config.clone(), ResolverOpts::default()).await.unwrap();
        assert_eq!(found, ["192.0.2.7:443".parse().unwrap()]);
        let missing = ask("other.contoso.test", 443, config, ResolverOpts::default()).await;
        assert!(missing.is_err(), "{missing:?}");
    }

    #[tokio::test]
    async fn an_address_and_a_name_of_the_hosts_file_need_no_name_server() {
        assert_eq!(resolve("192.0.2.1", 9443).await.unwrap(), ["192.0.2.1:9443".parse().unwrap()]);
        assert_eq!(resolve("fd00::1", 443).await.unwrap(), ["[fd00::1]:443".parse().unwrap()]);
        let nobody = ResolverConfig::from_name_servers(Vec::new());
        let found = ask("localhost", 443, nobody, ResolverOpts::default()).await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
        assert!(!found.is_empty());
    }
}
