package protos

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "github.com/auberge-vm/auberge/protos/appspb"
	_ "github.com/auberge-vm/auberge/protos/ciceronepb"
	_ "github.com/auberge-vm/auberge/protos/conciergepb"
	_ "github.com/auberge-vm/auberge/protos/containerpb"
	_ "github.com/auberge-vm/auberge/protos/tremplinpb"
	_ "github.com/auberge-vm/auberge/protos/vmtoolspb"
	_ "github.com/auberge-vm/auberge/protos/vshpb"
)

// A fact is one row of facts.tsv without its comments, so that facts from the
// table and from the descriptors compare equal when they agree.
type fact struct {
	kind, owner, number, name, typ, label string
}

func (f fact) String() string {
	return strings.TrimRight(strings.Join([]string{f.kind, f.owner, f.number, f.name, f.typ, f.label}, " "), " ")
}

// place is what two facts about the same thing share.
func (f fact) place() string {
	if f.number == "" {
		return f.kind + " " + f.owner + " " + f.name
	}
	return f.kind + " " + f.owner + " " + f.number
}

func compareFacts(a, b fact) int { return cmp.Compare(a.String(), b.String()) }

// readFacts returns the facts that stand and those that are overruled.
func readFacts(t *testing.T) (standing, overruled map[fact]bool) {
	t.Helper()
	text, err := os.ReadFile("testdata/facts.tsv")
	if err != nil {
		t.Fatal(err)
	}
	standing, overruled = map[fact]bool{}, map[fact]bool{}
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, "kind\t") {
			continue
		}
		c := strings.Split(line, "\t")
		if len(c) != 9 {
			t.Fatalf("facts.tsv:%d: %d columns, want 9", i+1, len(c))
		}
		f := fact{c[0], c[1], c[2], c[3], c[4], c[5]}
		source, status, note := c[6], c[7], c[8]
		if !slices.Contains([]string{"seed", "head", "both", "ours"}, source) {
			t.Errorf("facts.tsv:%d: unknown source %q", i+1, source)
		}
		if (status == "overruled" || source == "ours") && note == "" {
			t.Errorf("facts.tsv:%d: no reason given", i+1)
		}
		if standing[f] || overruled[f] {
			t.Errorf("facts.tsv:%d: twice: %s", i+1, f)
		}
		switch status {
		case "stands":
			standing[f] = true
		case "overruled":
			overruled[f] = true
		default:
			t.Errorf("facts.tsv:%d: unknown status %q", i+1, status)
		}
	}
	return standing, overruled
}

// describe returns the facts of every linked file of upstream's packages.
func describe() map[fact]bool {
	facts := map[fact]bool{}
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if file.Package() == "vm_tools" || strings.HasPrefix(string(file.Package()), "vm_tools.") {
			describeMessages(facts, file.Messages())
			describeEnums(facts, file.Enums())
			describeServices(facts, file.Services())
		}
		return true
	})
	return facts
}

func describeMessages(facts map[fact]bool, messages protoreflect.MessageDescriptors) {
	for i := range messages.Len() {
		m := messages.Get(i)
		if m.IsMapEntry() {
			continue
		}
		if m.Fields().Len() == 0 {
			facts[fact{kind: "message", owner: string(m.FullName())}] = true
		}
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			facts[fact{"field", string(m.FullName()), fmt.Sprint(f.Number()), string(f.Name()), typeOf(f), labelOf(f)}] = true
		}
		describeEnums(facts, m.Enums())
		describeMessages(facts, m.Messages())
	}
}

func describeEnums(facts map[fact]bool, enums protoreflect.EnumDescriptors) {
	for i := range enums.Len() {
		e := enums.Get(i)
		for j := range e.Values().Len() {
			v := e.Values().Get(j)
			label := ""
			if v.Options().(*descriptorpb.EnumValueOptions).GetDeprecated() {
				label = "deprecated"
			}
			facts[fact{"value", string(e.FullName()), fmt.Sprint(v.Number()), string(v.Name()), "", label}] = true
		}
	}
}

func describeServices(facts map[fact]bool, services protoreflect.ServiceDescriptors) {
	for i := range services.Len() {
		s := services.Get(i)
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			label := "unary"
			if m.IsStreamingClient() || m.IsStreamingServer() {
				label = "stream"
			}
			typ := relative(m.Input(), s) + " -> " + relative(m.Output(), s)
			facts[fact{"rpc", string(s.FullName()), "", string(m.Name()), typ, label}] = true
		}
	}
}

func typeOf(f protoreflect.FieldDescriptor) string {
	switch {
	case f.IsMap():
		return "map<" + typeOf(f.MapKey()) + "," + typeOf(f.MapValue()) + ">"
	case f.Message() != nil:
		return relative(f.Message(), f)
	case f.Enum() != nil:
		return relative(f.Enum(), f)
	}
	return f.Kind().String()
}

func labelOf(f protoreflect.FieldDescriptor) string {
	var labels []string
	switch {
	case f.IsMap():
		labels = append(labels, "map")
	case f.IsList():
		labels = append(labels, "repeated")
	case f.HasOptionalKeyword():
		labels = append(labels, "optional")
	case f.ContainingOneof() != nil:
		labels = append(labels, "oneof:"+string(f.ContainingOneof().Name()))
	}
	if f.Options().(*descriptorpb.FieldOptions).GetDeprecated() {
		labels = append(labels, "deprecated")
	}
	return strings.Join(labels, ",")
}

// relative is the name of d as upstream's file of from would write it.
func relative(d, from protoreflect.Descriptor) string {
	return strings.TrimPrefix(string(d.FullName()), string(from.ParentFile().Package())+".")
}

func TestDescriptorsHoldTheFactsAndNoMore(t *testing.T) {
	standing, _ := readFacts(t)
	described := describe()
	if len(standing) == 0 {
		t.Fatal("facts.tsv holds no facts")
	}
	byPlace := map[string]fact{}
	for f := range described {
		byPlace[f.place()] = f
	}
	for _, f := range slices.SortedFunc(maps.Keys(standing), compareFacts) {
		if described[f] {
			continue
		}
		if got, ok := byPlace[f.place()]; ok {
			t.Errorf("fact:       %s\ndescriptor: %s", f, got)
		} else {
			t.Errorf("fact:       %s\ndescriptor: nothing there", f)
		}
	}
	for _, f := range slices.SortedFunc(maps.Keys(described), compareFacts) {
		if !standing[f] {
			t.Errorf("descriptor: %s\nis no fact that stands", f)
		}
	}
}

func TestOverruledFactsHaveAnotherInTheirPlace(t *testing.T) {
	standing, overruled := readFacts(t)
	places := map[string]bool{}
	for f := range standing {
		places[f.place()] = true
	}
	for f := range overruled {
		if !places[f.place()] {
			t.Errorf("overruled, but nothing stands in its place: %s", f)
		}
	}
}

// A file whose package is not imported above would escape the comparison.
func TestEveryProtoFileIsCompared(t *testing.T) {
	files, err := filepath.Glob("*.proto")
	if err != nil || len(files) == 0 {
		t.Fatalf("found %d .proto files: %v", len(files), err)
	}
	for _, file := range files {
		if _, err := protoregistry.GlobalFiles.FindFileByPath(file); err != nil {
			t.Errorf("%s: not linked into this test: import its Go package", file)
		}
	}
}
