//! Taints of nodes and what tolerates them, by their texts as they are written (`ToleratesTaint` of
//! `component-helpers/scheduling/corev1`).

/// A taint of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taint<'a> {
    /// Its key.
    pub key: &'a str,
    /// Its value; empty for none.
    pub value: &'a str,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: &'a str,
}

/// A toleration of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Toleration<'a> {
    /// The key that it is about; empty for all, with `Exists`.
    pub key: &'a str,
    /// `Equal`, which is also meant when it is empty, `Exists`, `Gt` or `Lt`.
    pub operator: &'a str,
    /// What the taint's value is compared with.
    pub value: &'a str,
    /// The effect that it is about; empty for all.
    pub effect: &'a str,
}

impl Toleration<'_> {
    /// Whether it matches the taint. An operator that nobody knows matches nothing.
    pub fn tolerates(&self, taint: Taint<'_>) -> bool {
        let is_about = |own: &str, other: &str| own.is_empty() || own == other;
        if !is_about(self.effect, taint.effect) || !is_about(self.key, taint.key) {
            return false;
        }
        let numbers = || taint.value.parse::<i64>().ok().zip(self.value.parse::<i64>().ok());
        match self.operator {
            "Exists" => true,
            _ if self.key.is_empty() => false,
            "" | "Equal" => self.value == taint.value,
            "Gt" => numbers().is_some_and(|(has, than)| has > than),
            "Lt" => numbers().is_some_and(|(has, than)| has < than),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_kubernetes_does() {
        let taint = Taint { key: "k", value: "5", effect: "NoExecute" };
        for (key, operator, value, effect, expected) in [
            ("", "Exists", "", "", true),
            ("k", "Exists", "", "NoExecute", true),
            ("k", "Exists", "", "NoSchedule", false),
            ("other", "Exists", "", "", false),
            ("k", "", "5", "", true),
            ("k", "Equal", "6", "", false),
            ("", "Equal", "5", "", false),
            ("k", "Gt", "4", "", true),
            ("k", "Gt", "5", "", false),
            ("k", "Lt", "6", "", true),
            ("k", "Lt", "six", "", false),
            ("k", "Like", "5", "", false),
        ] {
            let toleration = Toleration { key, operator, value, effect };
            assert_eq!(toleration.tolerates(taint), expected, "{toleration:?}");
        }
    }
}
