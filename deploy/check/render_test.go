package check

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	yamlutil "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// manifests is the folder of kustomizations; overlays are those that are applied.
const manifests = "../kubernetes"

func overlays(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(manifests, "overlays", "*"))
	if err != nil || len(found) < 2 {
		t.Fatalf("got the overlays %v (%v), want two or more", found, err)
	}
	return found
}

// A rendering is all that one overlay applies, by kind.
type rendering struct {
	namespaces   []corev1.Namespace
	accounts     []corev1.ServiceAccount
	configs      []corev1.ConfigMap
	services     []corev1.Service
	deployments  []appsv1.Deployment
	autoscalers  []autoscalingv2.HorizontalPodAutoscaler
	disruption   []policyv1.PodDisruptionBudget
	networks     []networkingv1.NetworkPolicy
	monitors     []monitoringv1.ServiceMonitor
	outNamespace []string // namespaced objects that are in none, or in another than bulla
}

// render runs kustomize on a folder.
func render(folder string) (*rendering, error) {
	options := krusty.MakeDefaultOptions()
	options.PluginConfig = types.DisabledPluginConfig()
	resources, err := krusty.MakeKustomizer(options).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		return nil, err
	}
	text, err := resources.AsYaml()
	if err != nil {
		return nil, err
	}
	return decode(text)
}

// decode reads documents, each strictly as the kind that it says it is.
func decode(text []byte) (*rendering, error) {
	var r rendering
	documents := yamlutil.NewDocumentDecoder(io.NopCloser(bytes.NewReader(text)))
	for buf := make([]byte, 1<<20); ; {
		n, err := documents.Read(buf)
		if errors.Is(err, io.EOF) {
			return &r, nil
		}
		if err != nil {
			return nil, err
		}
		if err := r.add(buf[:n]); err != nil {
			return nil, err
		}
	}
}

func (r *rendering) add(document []byte) error {
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
		} `json:"metadata"`
	}
	if err := yaml.Unmarshal(document, &head); err != nil {
		return err
	}
	what := head.APIVersion + " " + head.Kind + " " + head.Metadata.Name
	if head.Kind != "Namespace" && head.Metadata.Namespace != "bulla" {
		r.outNamespace = append(r.outNamespace, what)
	}
	var err error
	switch head.APIVersion + " " + head.Kind {
	case "v1 Namespace":
		err = strict(document, &r.namespaces)
	case "v1 ServiceAccount":
		err = strict(document, &r.accounts)
	case "v1 ConfigMap":
		err = strict(document, &r.configs)
	case "v1 Service":
		err = strict(document, &r.services)
	case "apps/v1 Deployment":
		err = strict(document, &r.deployments)
	case "autoscaling/v2 HorizontalPodAutoscaler":
		err = strict(document, &r.autoscalers)
	case "policy/v1 PodDisruptionBudget":
		err = strict(document, &r.disruption)
	case "networking.k8s.io/v1 NetworkPolicy":
		err = strict(document, &r.networks)
	case "monitoring.coreos.com/v1 ServiceMonitor":
		err = strict(document, &r.monitors)
	default:
		err = errors.New("is of no kind that is expected here: secrets above all are not kept with manifests")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// strict decodes a document and adds it to a list.
func strict[T any](document []byte, list *[]T) error {
	var one T
	if err := yaml.UnmarshalStrict(document, &one); err != nil {
		return err
	}
	*list = append(*list, one)
	return nil
}

// TestEveryDocumentIsOfItsType: every overlay, and the base by itself.
func TestEveryDocumentIsOfItsType(t *testing.T) {
	for _, folder := range append(overlays(t), filepath.Join(manifests, "base")) {
		r, err := render(folder)
		if err != nil {
			t.Errorf("%s: %v", folder, err)
			continue
		}
		if len(r.outNamespace) > 0 {
			t.Errorf("%s: not in the namespace bulla: %v", folder, r.outNamespace)
		}
		for kind, got := range map[string]int{
			"Namespace": len(r.namespaces), "ServiceAccount": len(r.accounts), "ConfigMap": len(r.configs), "Deployment": len(r.deployments),
			"HorizontalPodAutoscaler": len(r.autoscalers), "PodDisruptionBudget": len(r.disruption), "ServiceMonitor": len(r.monitors),
		} {
			if got != 1 {
				t.Errorf("%s: got %d of kind %s, want 1", folder, got, kind)
			}
		}
		if len(r.services) < 3 || len(r.networks) < 1 {
			t.Errorf("%s: got %d Services and %d NetworkPolicies, want three and one at least", folder, len(r.services), len(r.networks))
		}
	}
}

// TestAMisspelledFieldIsAnError: that decoding is strict is what the rest rests on.
func TestAMisspelledFieldIsAnError(t *testing.T) {
	for _, tt := range []struct{ document, want string }{
		{"apiVersion: apps/v1\nkind: Deployment\nspec: {template: {spec: {automountServiceAcountToken: false}}}\n", "automountServiceAcountToken"},
		{"apiVersion: monitoring.coreos.com/v1\nkind: ServiceMonitor\nspec: {endpoints: [{prot: ops}]}\n", "prot"},
		{"apiVersion: v1\nkind: Secret\nstringData: {pin: '1234'}\n", "no kind that is expected"},
		{"apiVersion: policy/v1beta1\nkind: PodDisruptionBudget\n", "no kind that is expected"},
		{"apiVersion: v1\nkind: Service\nspec: {ports: [{port: grpc}]}\n", "port"},
	} {
		if _, err := decode([]byte(tt.document)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want an error about %s", tt.document, err, tt.want)
		}
	}
}

// each runs a test on every overlay.
func each(t *testing.T, test func(t *testing.T, r *rendering, folder string)) {
	t.Helper()
	for _, folder := range overlays(t) {
		t.Run(filepath.Base(folder), func(t *testing.T) {
			r, err := render(folder)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.deployments) != 1 || len(r.configs) != 1 {
				t.Fatalf("got %d Deployments and %d ConfigMaps, want one each", len(r.deployments), len(r.configs))
			}
			test(t, r, folder)
		})
	}
}

// read reads a file beside the manifests.
func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
