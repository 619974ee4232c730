//! Which links are the node's way out: those of the default routes in its main table, whatever their names.
//!
//! Not those of other tables: an egress gateway's can lead through a pod. And not every link with a gateway behind it: that can be a pod too.

use std::collections::BTreeMap;

use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};

use super::{Survey, link_name};

impl Survey {
    /// The names of the uplinks by their index.
    #[must_use]
    pub fn uplinks(&self) -> BTreeMap<u32, String> {
        self.default_links(false)
    }

    /// Bridges that are the way out: there may be pods on the same bridge, and on this side of it a neighbour looks like one of them.
    #[must_use]
    pub fn bridged_uplinks(&self) -> BTreeMap<u32, String> {
        self.default_links(true)
    }

    fn default_links(&self, bridges: bool) -> BTreeMap<u32, String> {
        let is_bridge = |index: &u32| self.links.get(index).is_some_and(|link| link.bridge);
        let wanted = self.default_links.iter().filter(|index| is_bridge(index) == bridges);
        wanted.map(|&index| (index, link_name(&self.links, index))).collect()
    }
}

/// The links of a default route; none of any other route.
pub(super) fn of_route(message: &RouteMessage) -> Vec<u32> {
    let header = &message.header;
    // Tables past 255 have 252 in the header.
    if header.destination_prefix_length != 0
        || header.kind != RouteType::Unicast
        || header.table != RouteHeader::RT_TABLE_MAIN
    {
        return Vec::new();
    }
    let links = message.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::Oif(link) => vec![*link],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    });
    links.collect()
}
