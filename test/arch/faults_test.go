package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every row of the table of faults names one test, and that test exists.
func TestFaultsAreTested(t *testing.T) {
	text, err := os.ReadFile("../../docs/faults.md")
	if err != nil {
		t.Fatal(err)
	}
	cell := regexp.MustCompile("^`([a-z0-9/]+): (Test[A-Za-z0-9]+)`$")
	rows := 0
	named := map[string]int{}
	for i, line := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| Fault |") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 5 {
			t.Errorf("line %d has %d cells, not 5", i+1, len(cells))
			continue
		}
		for j, c := range cells {
			if strings.TrimSpace(c) == "" {
				t.Errorf("line %d: cell %d is empty", i+1, j+1)
			}
		}
		m := cell.FindStringSubmatch(strings.TrimSpace(cells[4]))
		if m == nil {
			t.Errorf("line %d names no test: %s", i+1, cells[4])
			continue
		}
		if other := named[m[0]]; other > 0 {
			t.Errorf("line %d has the test of line %d", i+1, other)
		}
		named[m[0]] = i + 1
		if !hasTest(t, m[1], m[2]) {
			t.Errorf("line %d: there is no %s in %s", i+1, m[2], m[1])
		}
	}
	if rows < 40 {
		t.Errorf("the table has only %d rows", rows)
	}
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
		if strings.Contains(string(text), "\nfunc "+name+"(t *testing.T)") {
			return true
		}
	}
	return false
}
