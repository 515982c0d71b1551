package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every row of the table of faults names one test of its own, and that test
// exists.
func TestFaultsAreTested(t *testing.T) {
	rows := tableRows(t, "faults.md", "| Fault |", 5)
	named := map[string]int{}
	for line, cells := range rows {
		tests := namedTests(t, line, cells[4])
		if len(tests) != 1 {
			t.Errorf("line %d names %d tests: %s", line, len(tests), cells[4])
			continue
		}
		if other := named[tests[0]]; other > 0 {
			t.Errorf("line %d has the test of line %d", line, other)
		}
		named[tests[0]] = line
	}
	if len(rows) < 40 {
		t.Errorf("the table has only %d rows", len(rows))
	}
}

// Every row of the threat model names the tests that hold it.
func TestThreatsAreTested(t *testing.T) {
	rows := tableRows(t, "threat-model.md", "| Who |", 4)
	for line, cells := range rows {
		namedTests(t, line, cells[3])
	}
	if len(rows) < 30 {
		t.Errorf("the table has only %d rows", len(rows))
	}
}

// tableRows reads the tables of a document that begin with head, by the
// number of the line.
func tableRows(t *testing.T, document, head string, columns int) map[int][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../docs", document))
	if err != nil {
		t.Fatal(err)
	}
	rows := map[int][]string{}
	inside := false
	for i, line := range strings.Split(string(text), "\n") {
		if inside = strings.HasPrefix(line, head) || inside && strings.HasPrefix(line, "|"); !inside || !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, head) {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != columns {
			t.Errorf("line %d has %d cells, not %d", i+1, len(cells), columns)
			continue
		}
		for j, c := range cells {
			if cells[j] = strings.TrimSpace(c); cells[j] == "" {
				t.Errorf("line %d: cell %d is empty", i+1, j+1)
			}
		}
		rows[i+1] = cells
	}
	return rows
}

var testName = regexp.MustCompile("^`([a-z0-9/_-]+): ((?:Test|Fuzz)[A-Za-z0-9]+)`$")

// namedTests reads a cell with the names of tests, and looks for them.
func namedTests(t *testing.T, line int, cell string) (names []string) {
	t.Helper()
	for name := range strings.SplitSeq(cell, ", ") {
		m := testName.FindStringSubmatch(name)
		if m == nil {
			t.Errorf("line %d: this is no test: %s", line, name)
			continue
		}
		if !hasTest(t, m[1], m[2]) {
			t.Errorf("line %d: there is no %s in %s", line, m[2], m[1])
		}
		names = append(names, m[0])
	}
	return names
}

func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../..", dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}
