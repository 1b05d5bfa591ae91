package measure

import (
	"bytes"
	"fmt"
	"strings"
)

// WriteTable writes rows whose first column is text and whose others are
// numbers. Columns that are empty throughout are left out.
func WriteTable(t *bytes.Buffer, rows [][]string) {
	widths := make([]int, len(rows[0]))
	filled := make([]bool, len(rows[0]))
	for n, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
			filled[i] = filled[i] || n > 0 && cell != ""
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-len([]rune(cell)))
			switch {
			case !filled[i]:
			case i == 0:
				line.WriteString("  " + cell + pad)
			default:
				line.WriteString("  " + pad + cell)
			}
		}
		fmt.Fprintln(t, strings.TrimRight(line.String(), " "))
	}
}

// Number has three digits or more, as many as are worth it.
func Number(f float64) string {
	switch {
	case f >= 100:
		return fmt.Sprintf("%.0f", f)
	case f >= 10:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}

// Verdict says whether a goal is met, in the words of a table.
func Verdict(ok bool) string {
	if ok {
		return "ok"
	}
	return "over"
}
