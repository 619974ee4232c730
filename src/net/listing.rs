//! Our table as text: what a file of `iptables/` says and what `nft list table` prints, read alike so that they can be compared.
//!
//! What changes by itself (counts, learned elements) is kept apart from the rules, so that a comparison is of rules alone.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// The table itself: what stands in it outside of chains, sets and counters, such as `flags dormant`.
const TABLE: &str = "table inet rolecall";
/// The set that `net install` fills.
const UPLINKS: &str = "set uplinks";
/// The two sets of pods that asked for instance metadata.
const PODS: &str = "set metadata_pods";

/// The objects of table inet rolecall.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Table {
    /// Chains, sets and counters by their first line, such as `chain addresses`: the kernel lists them in an order of its own.
    blocks: BTreeMap<String, Vec<String>>,
    /// The elements of the set `uplinks`, sorted.
    uplinks: Vec<String>,
    /// Packets by the counter's name.
    counters: BTreeMap<String, u64>,
    pods: Vec<(IpAddr, u64)>,
}

impl Table {
    /// Reads the lines inside the table's braces. nft prints them one object at a time; the files are written the same way.
    pub(super) fn parse(text: &str) -> Self {
        let mut table = Self::default();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut lines = lines.skip_while(|line| !line.starts_with(TABLE)).skip(1);
        let mut block = TABLE.to_owned();
        table.blocks.insert(block.clone(), Vec::new());
        while let Some(line) = lines.next() {
            if line == "}" {
                block = TABLE.to_owned();
            } else if let (true, Some(head)) = (block == TABLE, line.strip_suffix(" {")) {
                block = head.to_owned();
                table.blocks.entry(block.clone()).or_default();
            } else if let Some(first) = line.strip_prefix("elements = {") {
                let mut elements = first.to_owned();
                while !elements.ends_with('}') {
                    let Some(more) = lines.next() else { break };
                    elements.push(' ');
                    elements.push_str(more);
                }
                table.read_elements(&block, elements.trim_end_matches('}'));
            } else if let Some((packets, _)) =
                line.strip_prefix("packets ").and_then(|rest| rest.split_once(' '))
            {
                let name = block.trim_start_matches("counter ").to_owned();
                table.counters.insert(name, packets.parse().unwrap_or_default());
            } else {
                table.blocks.entry(block.clone()).or_default().push(line.to_owned());
            }
        }
        table
    }

    fn read_elements(&mut self, block: &str, elements: &str) {
        let elements = elements.split(',').map(str::trim);
        if block == UPLINKS {
            self.set_uplinks(elements.map(|name| name.trim_matches('"')));
        } else if block.starts_with(PODS) {
            self.pods.extend(elements.filter_map(read_pod));
        }
    }

    /// Sets the elements of the set `uplinks`.
    pub(super) fn set_uplinks<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        self.uplinks = names.map(str::to_owned).collect();
        self.uplinks.sort();
    }

    /// Takes the objects of another file in.
    pub(super) fn merge(&mut self, other: Self) {
        self.blocks.extend(other.blocks);
    }

    /// Puts a line before the others of a chain.
    pub(super) fn insert(&mut self, head: &str, line: String) {
        self.blocks.entry(head.to_owned()).or_default().insert(0, line);
    }

    /// What differs from `wanted`, for people; `None` if the rules are the same.
    pub(super) fn difference(&self, wanted: &Self) -> Option<String> {
        for (head, lines) in &wanted.blocks {
            let Some(found) = self.blocks.get(head) else {
                return Some(format!("missing in table inet rolecall: `{head}`"));
            };
            if let Some(missing) = lines.iter().find(|line| !found.contains(line)) {
                return Some(format!("missing in table inet rolecall: `{missing}` ({head})"));
            }
            if let Some(foreign) = found.iter().find(|line| !lines.contains(line)) {
                return Some(format!("not ours, but in table inet rolecall: `{foreign}` ({head})"));
            }
            if lines != found {
                return Some(format!("the rules of table inet rolecall are in another order ({head})"));
            }
        }
        if let Some(head) = self.blocks.keys().find(|head| !wanted.blocks.contains_key(*head)) {
            return Some(format!("not ours, but in table inet rolecall: `{head}`"));
        }
        (self.uplinks != wanted.uplinks).then(|| {
            format!(
                "table inet rolecall knows the uplinks {:?}, and they are {:?}",
                self.uplinks, wanted.uplinks
            )
        })
    }

    /// Whether there is an object of this first line.
    pub(super) fn has(&self, head: &str) -> bool {
        self.blocks.contains_key(head)
    }

    /// Packets that the named counter has seen; 0 if there is none.
    pub(super) fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or_default()
    }

    /// Pods that asked for instance metadata, with their connections, the busiest first.
    pub(super) fn pods(&self) -> Vec<(IpAddr, u64)> {
        let mut pods = self.pods.clone();
        pods.sort_by_key(|&(ip, connections)| (std::cmp::Reverse(connections), ip));
        pods
    }
}

/// `10.0.1.7 counter packets 3 bytes 180 expires 23h59m`; the order of the last two is nft's own matter.
fn read_pod(element: &str) -> Option<(IpAddr, u64)> {
    let mut words = element.split_whitespace();
    let ip = words.next()?.parse().ok()?;
    let packets = words.skip_while(|&word| word != "packets").nth(1)?.parse().ok()?;
    Some((ip, packets))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = r#"table inet rolecall {
	counter metadata_connections {
		packets 12 bytes 720
	}

	set uplinks {
		type iface_index
		elements = { "eth1", "eth0", 8 }
	}

	set metadata_pods {
		type ipv4_addr
		elements = { 10.0.0.1 counter packets 1 bytes 60 expires 23h59m, 10.0.0.2 counter packets 9 bytes 540 expires 1h,
			     10.0.0.3 expires 3m counter packets 2 bytes 120 }
	}

	chain metadata {
		type filter hook forward priority filter + 5; policy accept;
		meta l4proto { tcp, udp } th dport 53 accept
	}
}
"#;
    const FILE: &str = "define port = 1
# Words.
table inet rolecall {
	counter metadata_connections {
	}

	set uplinks {
		type iface_index
	}

	set metadata_pods {
		# Words.
		type ipv4_addr
	}

	chain metadata {
		type filter hook forward priority filter + 5; policy accept;
		meta l4proto { tcp, udp } th dport 53 accept
	}
}
";

    fn file() -> Table {
        let mut table = Table::parse(FILE);
        table.set_uplinks(["8", "eth0", "eth1"].into_iter());
        table
    }

    #[test]
    fn a_file_and_its_listing_are_the_same_rules() {
        assert_eq!(Table::parse(LISTED).difference(&file()), None);
    }

    #[test]
    fn a_missing_a_foreign_and_a_moved_rule_are_named() {
        let differs =
            |from: &str, to: &str| Table::parse(&LISTED.replace(from, to)).difference(&file()).unwrap();
        let rule = "meta l4proto { tcp, udp } th dport 53 accept";
        assert!(differs(rule, "").contains(&format!("missing in table inet rolecall: `{rule}`")));
        assert!(
            differs(rule, &format!("{rule}\ndrop")).contains("not ours, but in table inet rolecall: `drop`")
        );
        assert!(differs("type ipv4_addr", "type ipv6_addr").contains("`type ipv4_addr`"));
        assert!(differs("chain metadata {", "chain theirs {").contains("`chain metadata`"));
        assert!(differs("\tcounter", "\tflags dormant\n\tcounter").contains("`flags dormant`"));
        assert!(differs("type filter", "drop\ntype filter").contains("`drop`"));
        assert!(differs("\"eth1\", ", "").contains("uplinks [\"8\", \"eth0\"]"));
        let moved = LISTED.replace("\t\ttype filter hook forward priority filter + 5; policy accept;\n", "");
        let moved = moved
            .replace(rule, &format!("{rule}\ntype filter hook forward priority filter + 5; policy accept;"));
        assert!(Table::parse(&moved).difference(&file()).unwrap().contains("order"));
    }

    #[test]
    fn counts_are_read_beside_the_rules() {
        let table = Table::parse(LISTED);
        assert_eq!(table.counter("metadata_connections"), 12);
        let pods = [("10.0.0.2", 9), ("10.0.0.3", 2), ("10.0.0.1", 1)];
        assert_eq!(table.pods(), pods.map(|(ip, packets)| (ip.parse().unwrap(), packets)));
    }
}
