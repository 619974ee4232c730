//! Rows as a person reads them.

use super::{Role, Row, Verdict};

/// A line for each pod, and below it why, where there is something to say.
pub(super) fn table(rows: &[Row]) -> String {
    let head = ["POD", "SERVICEACCOUNT", "TODAY", "ROLECALL", ""].map(str::to_owned);
    let mut lines = vec![(head, Vec::new())];
    for row in rows {
        let role = |role: &Role| role.role().unwrap_or("-").to_owned();
        let verdict = match row.verdict {
            Verdict::Loses => "LOSES ITS ROLE",
            Verdict::Changes => "ANOTHER ROLE",
            Verdict::Gains => "new",
            Verdict::Same => "same",
            Verdict::None => "",
        };
        let cells = [
            format!("{}/{}", row.namespace, row.pod),
            row.service_account.clone(),
            role(&row.today),
            role(&row.rolecall),
            verdict.to_owned(),
        ];
        let mut why = Vec::new();
        // Two that have none need no words for it.
        if row.verdict != Verdict::None {
            for (who, role) in [("today", &row.today), ("rolecall", &row.rolecall)] {
                if let Role::Reason(reason) = role {
                    why.push(format!("{who}: {reason}"));
                }
            }
        }
        why.extend(row.notes.iter().map(|note| format!("note: {note}")));
        lines.push((cells, why));
    }
    let mut widths = [0; 5];
    for (cells, _) in &lines {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut table = String::new();
    for (cells, why) in lines {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        table.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        table.push('\n');
        for why in why {
            table.push_str("    ");
            // Tenants' words among them: one line each.
            table.extend(why.chars().map(|c| if c.is_control() { ' ' } else { c }));
            table.push('\n');
        }
    }
    table
}
