//! What a PriorityLevelConfiguration says.

use serde_json::Value;

/// How requests of a level are limited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Not at all.
    Exempt,
    /// Who finds no seat is turned away.
    Reject,
    /// Who finds no seat waits.
    Queue(Queuing),
}

/// How they wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Queuing {
    pub queues: u32,
    pub hand_size: u32,
    pub length_limit: u32,
}

/// A level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Level {
    pub kind: Kind,
    pub shares: u32,
    /// Of its own seats.
    pub lendable_percent: u32,
    /// The same; without one it may borrow whatever is lent.
    pub borrowing_limit_percent: Option<u32>,
}

impl Level {
    /// Of a stored object, with its defaults filled in; `None` when it is none.
    pub fn read(object: &Value) -> Option<Level> {
        let spec = &object["spec"];
        let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        let of = |part: &Value, kind| Level {
            kind,
            shares: number(&part["nominalConcurrencyShares"]).unwrap_or_default(),
            lendable_percent: number(&part["lendablePercent"]).unwrap_or_default().min(100),
            borrowing_limit_percent: number(&part["borrowingLimitPercent"]),
        };
        if spec["type"] == "Exempt" {
            return Some(of(&spec["exempt"], Kind::Exempt));
        }
        let limited = &spec["limited"];
        let response = &limited["limitResponse"];
        let kind = match response["type"].as_str()? {
            "Reject" => Kind::Reject,
            _ => {
                let queuing = &response["queuing"];
                let (queues, hand_size) = (number(&queuing["queues"])?, number(&queuing["handSize"])?);
                if queues == 0 || hand_size == 0 {
                    return None;
                }
                Kind::Queue(Queuing { queues, hand_size, length_limit: number(&queuing["queueLengthLimit"])? })
            }
        };
        Some(of(limited, kind))
    }
}
