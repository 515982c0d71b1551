package protos

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func generate(t *testing.T, out string) {
	t.Helper()
	if _, err := exec.LookPath("protoc"); err != nil {
		t.Fatal("protoc is missing: run make deps")
	}
	noteInputs(t)
	if text, err := exec.CommandContext(t.Context(), "./generate.sh", out).CombinedOutput(); err != nil {
		t.Fatalf("generate.sh: %v\n%s", err, text)
	}
}

// noteInputs reads what protoc will read. go test reuses an earlier result when
// the files that the test itself opened are unchanged, and does not see what
// its children open.
func noteInputs(t *testing.T) {
	t.Helper()
	for _, pattern := range []string{"*.proto", "include/google/protobuf/*.proto", "generate.sh", "../go.mod"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatalf("%s: found %d files: %v", pattern, len(paths), err)
		}
		for _, path := range paths {
			if _, err := os.ReadFile(path); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// generated returns the generated files below dir by relative path.
func generated(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*pb", "*.pb.go"))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = text
	}
	return files
}

func TestGeneratedCodeIsCurrent(t *testing.T) {
	out := t.TempDir()
	generate(t, out)
	want, got := generated(t, out), generated(t, ".")
	if len(want) == 0 {
		t.Fatal("generate.sh made no files")
	}
	for name, text := range want {
		if have, ok := got[name]; !ok {
			t.Errorf("%s is missing: run make protos and commit it", name)
		} else if !bytes.Equal(have, text) {
			t.Errorf("%s is stale: run make protos and commit it", name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s comes from no .proto file: run make protos and commit its removal", name)
		}
	}
}

func TestGeneratingKeepsHandWrittenFilesAndRemovesOrphans(t *testing.T) {
	out := t.TempDir()
	hand, orphan := filepath.Join(out, "vshpb", "frame.go"), filepath.Join(out, "vshpb", "gone.pb.go")
	if err := os.Mkdir(filepath.Dir(hand), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{hand, orphan} {
		if err := os.WriteFile(path, []byte("package vshpb\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	generate(t, out)
	if _, err := os.Stat(hand); err != nil {
		t.Errorf("hand-written file: %v", err)
	}
	if _, err := os.Stat(orphan); !os.IsNotExist(err) {
		t.Errorf("orphan: %v, want it gone", err)
	}
}
