//! The rules as the kernel takes them: one nf_tables transaction over a netlink socket, so that there are at any
//! moment the old rules, whole, or the new ones.
//!
//! Messages are `netlink-packet-netfilter`'s. It knows no `redir`, no `range` and no `fib`, so these are spelt out by
//! attribute (linux/netfilter/nf_tables.h). Of the other crates rustables is GPL, nftnl wants a C library, and
//! nftables calls the nft program.

use std::{io, net::IpAddr, time::Duration};

use ipnet::IpNet;
use netlink_packet_core::{
    DefaultNla, Emitable as _, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{
        Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions,
        Hook as Where, Immediate, InetHookNumber, ListAttribute, Meta, MetaKey, NfTablesMessage, Operator,
        Payload, Register, RuleAttribute, RuleMessage, TableAttribute, TableMessage, Verdict as Code,
        VerdictAttribute,
    },
    none::ControlMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use socket2::SockRef;

use super::rules::{Chain, Hook, Match, PortRange, Rule, Ruleset, TABLE, Verdict};

/// `NFNL_SUBSYS_NFTABLES`: whose batch it is.
const SUBSYSTEM: u16 = 10;
/// The kind of an address that is this machine's, here the pod's (linux/rtnetlink.h).
const RTN_LOCAL: u32 = 2;
/// Destination NAT's priority, `NF_IP_PRI_NAT_DST`.
const PRIORITY: i32 = -100;
/// The kernel answers at once; it may have to load a module first.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of one answer: a message's number and error, and at most the message itself.
const ANSWER: usize = 64 * 1024;

/// Why the kernel did not do it.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("netlink: {0}")]
    Socket(#[source] io::Error),
    /// Not allowed to.
    #[error(
        "not allowed: this needs CAP_NET_ADMIN (in Kubernetes securityContext.capabilities.add: [NET_ADMIN], as root)"
    )]
    NotAllowed,
    /// The kernel lacks a part.
    #[error(
        "the kernel lacks nf_tables, its NAT chains or its redirect ({0}): load nf_tables, nft_chain_nat and nft_redir, or use a kernel from 5.2 on"
    )]
    Lacking(#[source] io::Error),
    /// Anything else that it says.
    #[error("the kernel refused message {number} of the transaction: {source}")]
    Refused {
        /// Counted from 0, which is the begin of the batch.
        number: u32,
        /// Its reason.
        source: io::Error,
    },
    /// What it says is no netlink.
    #[error("the kernel's answer cannot be read: {0}")]
    Answer(String),
}

/// Puts `ruleset` in the place of what is there, if anything is. Where the kernel cannot tell whose an address is, it is
/// written without what needs that, and the answer is false.
///
/// # Errors
/// As the kernel says; then nothing has changed.
pub fn replace(ruleset: &Ruleset) -> Result<bool, NetlinkError> {
    replace_by(commit, ruleset)
}

fn replace_by(
    commit: impl Fn(Vec<Message>) -> Result<(), NetlinkError>,
    ruleset: &Ruleset,
) -> Result<bool, NetlinkError> {
    match commit(replacement(ruleset)) {
        // It does not say which part it lacks.
        Err(NetlinkError::Lacking(_)) => commit(replacement(&ruleset.without_fib())).map(|()| false),
        other => other.map(|()| true),
    }
}

/// Removes the table, if it is there.
///
/// # Errors
/// As the kernel says; then nothing has changed.
pub fn remove() -> Result<(), NetlinkError> {
    commit(removal())
}

/// A message and its flags, beyond those that all have.
type Message = (NfTablesMessage, u16);

/// Making the table first is how a transaction says that it need not be there.
fn removal() -> Vec<Message> {
    vec![(NfTablesMessage::NewTable(table()), NLM_F_CREATE), (NfTablesMessage::DeleteTable(table()), 0)]
}

fn replacement(ruleset: &Ruleset) -> Vec<Message> {
    let mut messages = removal();
    messages.push((NfTablesMessage::NewTable(table()), NLM_F_CREATE));
    for chain in &ruleset.chains {
        messages.push((NfTablesMessage::NewChain(base_chain(chain)), NLM_F_CREATE));
        for rule in &chain.rules {
            messages.push((NfTablesMessage::NewRule(message(chain, rule)), NLM_F_CREATE | NLM_F_APPEND));
        }
    }
    messages
}

fn table() -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(TABLE.to_owned())] }
}

fn base_chain(chain: &Chain) -> ChainMessage {
    let hook = match chain.hook {
        Hook::Output => InetHookNumber::LocalOut,
        Hook::Prerouting => InetHookNumber::PreRouting,
    };
    let attributes = vec![
        ChainAttribute::Table(TABLE.to_owned()),
        ChainAttribute::Name(chain.name.to_owned()),
        ChainAttribute::Hook(vec![Where::Number(hook.into()), Where::Priority(PRIORITY.cast_unsigned())]),
        ChainAttribute::Type("nat".to_owned()),
    ];
    ChainMessage { attributes }
}

fn message(chain: &Chain, rule: &Rule) -> RuleMessage {
    let mut expressions: Vec<Expressions> = rule.matches.iter().flat_map(matching).collect();
    match rule.verdict {
        Verdict::Leave => {
            let verdict = DataAttribute::Verdict(vec![VerdictAttribute::Code(Code::Return)]);
            expressions.push(immediate(Register::Verdict, verdict));
        }
        Verdict::Redirect(port) => {
            expressions.push(immediate(Register::Reg1, DataAttribute::Value(port.to_be_bytes().to_vec())));
            // NFTA_REDIR_REG_PROTO_MIN
            expressions.push(other("redir", vec![DefaultNla::new(1, register(Register::Reg1))]));
        }
    }
    let attributes = vec![
        RuleAttribute::Table(TABLE.to_owned()),
        RuleAttribute::Chain(chain.name.to_owned()),
        RuleAttribute::Expressions(
            expressions.into_iter().map(ListAttribute::<ExpressionAttribute>::from).collect(),
        ),
    ];
    RuleMessage { attributes }
}

fn matching(what: &Match) -> Vec<Expressions> {
    match what {
        Match::SentBy(user) => vec![meta(MetaKey::SocketUserId), equal(user.to_ne_bytes().to_vec())],
        Match::OutLoopback => vec![meta(MetaKey::Oifname), equal(interface("lo"))],
        Match::InLoopback => vec![meta(MetaKey::Iifname), equal(interface("lo"))],
        Match::Tcp => tcp().to_vec(),
        Match::ToPort(range) => {
            let mut expressions = tcp().to_vec();
            // The transport header; a TCP port is two bytes from its third on (RFC 9293, 3.1).
            expressions.push(load(2, 2, 2));
            expressions.push(ports(*range));
            expressions
        }
        Match::To(net) => to(net),
        // NFTA_FIB_DREG, _RESULT (3: the kind of address), _FLAGS (2: of the destination)
        Match::ToOther => {
            let attributes = vec![
                DefaultNla::new(1, register(Register::Reg1)),
                DefaultNla::new(2, 3_u32.to_be_bytes().to_vec()),
                DefaultNla::new(3, 2_u32.to_be_bytes().to_vec()),
            ];
            vec![other("fib", attributes), compare(Operator::NotEqual, RTN_LOCAL.to_ne_bytes().to_vec())]
        }
    }
}

fn tcp() -> [Expressions; 2] {
    [meta(MetaKey::L4Proto), equal(vec![6])]
}

fn ports(range: PortRange) -> Expressions {
    let (first, last) = range.ends();
    if first == last {
        return equal(first.to_be_bytes().to_vec());
    }
    // NFTA_RANGE_SREG, _OP (0: within), _FROM_DATA, _TO_DATA
    let attributes = vec![
        DefaultNla::new(1, register(Register::Reg1)),
        DefaultNla::new(2, 0_u32.to_be_bytes().to_vec()),
        DefaultNla::new(3, nested(DataAttribute::Value(first.to_be_bytes().to_vec()))),
        DefaultNla::new(4, nested(DataAttribute::Value(last.to_be_bytes().to_vec()))),
    ];
    other("range", attributes)
}

fn to(net: &IpNet) -> Vec<Expressions> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    // NFPROTO_IPV4 and _IPV6; where the destination lies in the header (RFC 791, 3.1; RFC 8200, 3), and its length.
    let (family, offset, length) = match net {
        IpNet::V4(_) => (2, 16, 4),
        IpNet::V6(_) => (10, 24, 16),
    };
    let mask = Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(length),
        Bitwise::Mask(DataAttribute::Value(octets(net.netmask()))),
        Bitwise::Xor(DataAttribute::Value(vec![0; length as usize])),
    ]);
    vec![
        meta(MetaKey::Nfproto),
        equal(vec![family]),
        load(1, offset, length),
        mask,
        equal(octets(net.network())),
    ]
}

/// An interface's name as the kernel compares it, `IFNAMSIZ` bytes.
fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn meta(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![Meta::DestinationRegister(Register::Reg1), Meta::Key(key)])
}

/// Bytes of a header; base 1 is the network's, 2 the transport's.
fn load(base: u32, offset: u32, length: u32) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

fn equal(bytes: Vec<u8>) -> Expressions {
    compare(Operator::Equal, bytes)
}

fn compare(operator: Operator, bytes: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(bytes)),
    ])
}

fn immediate(register: Register, data: DataAttribute) -> Expressions {
    Expressions::Immediate(vec![Immediate::DestinationRegister(register), Immediate::Data(data)])
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> Expressions {
    Expressions::Other { expression_type: name.to_owned(), attributes }
}

fn register(register: Register) -> Vec<u8> {
    u32::from(register).to_be_bytes().to_vec()
}

fn nested(data: DataAttribute) -> Vec<u8> {
    let attributes = [data];
    let mut bytes = vec![0; attributes.as_slice().buffer_len()];
    attributes.as_slice().emit(&mut bytes);
    bytes
}

/// The transaction's bytes: begin, messages, end, numbered from 0. The last message alone asks for a word of success.
fn batch(messages: Vec<Message>) -> (Vec<u8>, u32) {
    let control = |message: ControlMessage| {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM);
        (NetfilterMessage::new(header, message), 0)
    };
    let count = messages.len();
    let mut all = Vec::with_capacity(count + 2);
    all.push(control(ControlMessage::BatchBegin));
    for (index, (message, flags)) in messages.into_iter().enumerate() {
        let flags = if index + 1 == count { flags | NLM_F_ACK } else { flags };
        let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
        all.push((NetfilterMessage::new(header, NetfilterMessageInner::from(message)), flags));
    }
    all.push(control(ControlMessage::BatchEnd));

    let mut bytes = Vec::new();
    for (number, (message, flags)) in (0..).zip(all) {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = number;
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len(), 0);
        message.serialize(&mut bytes[start..]);
    }
    (bytes, u32::try_from(count).expect("a few hundred messages at most"))
}

fn commit(messages: Vec<Message>) -> Result<(), NetlinkError> {
    let (bytes, last) = batch(messages);
    let mut socket = Socket::new(NETLINK_NETFILTER).map_err(NetlinkError::Socket)?;
    socket.bind_auto().map_err(NetlinkError::Socket)?;
    let options = SockRef::from(&socket);
    options.set_read_timeout(Some(PATIENCE)).map_err(NetlinkError::Socket)?;
    // The whole transaction is one datagram.
    options.set_send_buffer_size(bytes.len() * 2).map_err(NetlinkError::Socket)?;
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).map_err(NetlinkError::Socket)?;
    loop {
        let mut answer = Vec::with_capacity(ANSWER);
        socket.recv(&mut answer, 0).map_err(NetlinkError::Socket)?;
        if done(&answer, last)? {
            return Ok(());
        }
    }
}

/// Whether the kernel said that the last message succeeded; the first refusal comes before that.
fn done(mut answer: &[u8], last: u32) -> Result<bool, NetlinkError> {
    while !answer.is_empty() {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(answer)
            .map_err(|error| NetlinkError::Answer(error.to_string()))?;
        let number = message.header.sequence_number;
        if let NetlinkPayload::Error(error) = &message.payload {
            match error.code {
                Some(_) => return Err(refusal(number, error.to_io())),
                None if number == last => return Ok(true),
                None => {}
            }
        }
        // Messages begin at multiples of four.
        let length = (message.header.length as usize).next_multiple_of(4).max(4);
        answer = answer.get(length..).unwrap_or_default();
    }
    Ok(false)
}

fn refusal(number: u32, error: io::Error) -> NetlinkError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => NetlinkError::NotAllowed,
        io::ErrorKind::NotFound | io::ErrorKind::Unsupported => NetlinkError::Lacking(error),
        _ => NetlinkError::Refused { number, source: error },
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkBuffer;

    use super::*;

    fn ruleset() -> Ruleset {
        let rule = Rule {
            matches: vec![Match::ToPort("1-2".parse().unwrap()), Match::To("fd00::/8".parse().unwrap())],
            verdict: Verdict::Redirect(15001),
        };
        let chain = |name, hook| Chain { name, hook, rules: vec![rule.clone()] };
        Ruleset { chains: [chain("outbound", Hook::Output), chain("inbound", Hook::Prerouting)] }
    }

    #[test]
    fn a_transaction_removes_the_old_table_and_asks_for_one_word_of_success() {
        let (bytes, last) = batch(replacement(&ruleset()));
        let (mut rest, mut seen) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let header = NetlinkBuffer::new_checked(rest).unwrap();
            seen.push((header.sequence_number(), header.message_type(), header.flags() & NLM_F_ACK != 0));
            rest = &rest[header.length() as usize..];
        }
        let types: Vec<u16> = seen.iter().map(|(_, kind, _)| *kind).collect();
        let nft = |kind: u16| SUBSYSTEM << 8 | kind;
        let (table, delete, chain, rule) = (nft(0), nft(2), nft(3), nft(6));
        assert_eq!(types, [16, table, delete, table, chain, rule, chain, rule, 17]);
        let asked: Vec<u32> = seen.iter().filter(|(.., ack)| *ack).map(|(number, ..)| *number).collect();
        assert_eq!(asked, [last]);
    }

    #[test]
    fn a_kernel_without_fib_gets_the_other_rules_and_one_that_lacks_more_is_named() {
        let mut all = ruleset();
        all.chains[1].rules.push(Rule { matches: vec![Match::ToOther], verdict: Verdict::Leave });
        let most = replacement(&all).len();
        let lacking = || Err(refusal(0, io::Error::from_raw_os_error(2)));
        let without = |messages: Vec<Message>| if messages.len() == most { lacking() } else { Ok(()) };
        assert!(!replace_by(without, &all).unwrap());
        assert!(replace_by(|_| Ok(()), &all).unwrap());
        assert!(matches!(replace_by(|_| lacking(), &all), Err(NetlinkError::Lacking(_))));
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let errno = |number| refusal(0, io::Error::from_raw_os_error(number)).to_string();
        assert!(errno(1).contains("NET_ADMIN"));
        assert!(errno(2).contains("nft_redir"));
        assert!(errno(95).contains("nft_redir"));
        assert!(errno(22).contains("message 0"));
    }

    #[test]
    fn an_answer_that_is_no_netlink_is_an_error_and_not_an_endless_wait() {
        assert!(matches!(done(&[1, 2, 3], 1), Err(NetlinkError::Answer(_))));
        assert!(!done(&[], 1).unwrap());
    }
}
