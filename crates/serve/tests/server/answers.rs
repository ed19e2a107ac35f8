//! What requests are answered.

use flashlin::{
    Input,
    generate::{GenerateOptions, generate},
};
use flashlin_tensor::no_grad;
use serde_json::{Value, json};

use super::support::*;

#[test]
fn a_completion_is_what_generate_gives() {
    for keys in kinds() {
        let s = start(keys.clone(), |_| {});
        let got =
            s.complete(&json!({"model": "tiny", "prompt": "Once upon", "max_tokens": 12, "temperature": 0}));
        let t = tokenizer();
        let prompt = t.encode("Once upon", true).unwrap();
        let options = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
        let (want, _) = generate(&model(keys), Some(&t), &[prompt], options, |_| {}).unwrap();
        assert_eq!(text(&got), want[0].text);
        assert_eq!((&got["object"], &got["model"]), (&json!("text_completion"), &json!("tiny")));
        assert!(got["id"].as_str().unwrap().starts_with("cmpl-"));
        assert_eq!(got["choices"][0]["finish_reason"], "length");
        assert_eq!(got["usage"], json!({"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}));
    }
}

#[test]
fn a_stream_joins_to_the_whole_answer() {
    let s = start(json!({}), |_| {});
    let mut body =
        json!({"prompt": ["ab", "Wählt!"], "n": 2, "seed": 3, "max_tokens": 20, "logprobs": 2, "echo": true});
    let whole = s.complete(&body);
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let events = s.events("/v1/completions", &body);
    let (last, parts) = events.split_last().unwrap();
    assert_eq!((&last["usage"], &last["choices"]), (&whole["usage"], &json!([])));
    for (i, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let mine = || parts.iter().map(|e| &e["choices"][0]).filter(|c| c["index"] == i);
        let text: String = mine().map(|c| c["text"].as_str().unwrap()).collect();
        assert_eq!(text, choice["text"].as_str().unwrap());
        for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let joined: Vec<&Value> =
                mine().filter_map(|c| c["logprobs"][field].as_array()).flatten().collect();
            let want: Vec<&Value> = choice["logprobs"][field].as_array().unwrap().iter().collect();
            assert_eq!(joined, want, "{field}");
        }
        assert_eq!(mine().next_back().unwrap()["finish_reason"], choice["finish_reason"]);
    }
    // Four choices of two prompts; each prompt's are different draws of one seed.
    assert_eq!(whole["choices"].as_array().unwrap().len(), 4);
    assert_ne!(whole["choices"][0]["text"], whole["choices"][1]["text"]);
    assert!(whole["choices"][3]["text"].as_str().unwrap().starts_with("Wählt!"));
}

#[test]
fn prompts_are_scored_as_the_model_scores_them() {
    for keys in kinds() {
        let s = start(keys.clone(), |_| {});
        let ids: Vec<u32> = (0..75).map(|i| 35 + (i * 37 + i * i) % 90).collect();
        let out =
            no_grad(|| model(keys).forward(&Input::row(&ids).unwrap(), None, &Default::default())).unwrap();
        let logits = out.logits.unwrap().into_tensor().to_f64_vec().unwrap();
        let vocab = logits.len() / ids.len();
        for max_tokens in [0, 1] {
            let body = json!({"prompt": [ids, ids[..1]], "max_tokens": max_tokens, "logprobs": 1, "echo": true, "temperature": 0});
            let got = s.complete(&body);
            let lp = &got["choices"][0]["logprobs"];
            let list = |f: &str| lp[f].as_array().unwrap().clone();
            assert_eq!(list("tokens").len(), ids.len() + max_tokens);
            assert_eq!((&list("token_logprobs")[0], &list("top_logprobs")[0]), (&Value::Null, &Value::Null));
            for (i, row) in logits.chunks(vocab).enumerate().take(ids.len() - 1) {
                let sum: f64 = row.iter().map(|x| x.exp()).sum::<f64>().ln();
                let want = row[ids[i + 1] as usize] - sum;
                let got = list("token_logprobs")[i + 1].as_f64().unwrap();
                assert!((got - want).abs() < 1e-4, "token {i}: {got} {want}");
                // The best is among the likeliest, and equal to the token's own number where it is the token.
                let best = row.iter().copied().fold(f64::MIN, f64::max) - sum;
                let top = list("top_logprobs")[i + 1]
                    .as_object()
                    .unwrap()
                    .values()
                    .map(|v| v.as_f64().unwrap())
                    .fold(f64::MIN, f64::max);
                assert!((top - best).abs() < 1e-4);
                assert_eq!(top == got, (best - want).abs() < 1e-9);
            }
            let prompt: String = ids.iter().map(|&c| (c - 3) as u8 as char).collect();
            assert!(text(&got).starts_with(&prompt));
            let offsets: Vec<u64> = list("text_offset").iter().map(|v| v.as_u64().unwrap()).collect();
            assert_eq!(offsets[..75], (0..75).collect::<Vec<u64>>());
            assert_eq!(got["choices"][1]["logprobs"]["tokens"].as_array().unwrap().len(), 1 + max_tokens);
            assert_eq!(got["usage"]["completion_tokens"], 2 * max_tokens);
        }
    }
}

#[test]
fn texts_end_where_they_should() {
    let s = start(json!({}), |_| {});
    let long = json!({"prompt": "Once", "max_tokens": 40, "temperature": 0.7, "seed": 11});
    let whole = text(&s.complete(&long)).to_string();
    let stop: String = whole.chars().skip(10).take(3).collect();
    let with = |key: &str, v: Value| {
        let mut body = long.clone();
        body[key] = v;
        s.complete(&body)
    };
    let cut = with("stop", json!([stop, "never there"]));
    assert_eq!(text(&cut), &whole[..whole.find(&stop).unwrap()]);
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");
    // A bias makes a token certain; the end token ends.
    let forced = with("logit_bias", json!({"68": 100}));
    assert!(text(&forced).starts_with("AAAA"), "{forced}");
    let eos = tokenizer().eos().unwrap().to_string();
    let ended = with("logit_bias", json!({eos.clone(): 100}));
    assert_eq!((text(&ended), &ended["usage"]["completion_tokens"]), ("", &json!(1)));
    let mut on = long.clone();
    (on["logit_bias"], on["ignore_eos"]) = (json!({eos: 100}), true.into());
    assert_eq!(s.complete(&on)["usage"]["completion_tokens"], 40);
    // Penalties move away from what was said.
    let mut calm = long.clone();
    (calm["temperature"], calm["logit_bias"]) = (0.into(), json!({"68": 6}));
    let plain = text(&s.complete(&calm)).matches('A').count();
    (calm["frequency_penalty"], calm["presence_penalty"]) = (2.0.into(), 2.0.into());
    assert!(text(&s.complete(&calm)).matches('A').count() < plain.max(1));
    assert_eq!(text(&s.complete(&long)), whole);
    let mut other = long.clone();
    other["seed"] = 12.into();
    assert_ne!(text(&s.complete(&other)), whole);
}

#[test]
fn conversations_follow_the_template() {
    let s = start(json!({}), |_| {});
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]},
    ]);
    let mut body = json!({"model": "tiny", "messages": messages, "max_tokens": 9, "temperature": 0, "logprobs": true, "top_logprobs": 3});
    let (status, chat) = s.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{chat}");
    let prompt = "<system>Be brief.\n<user>Hi!\n<assistant>";
    let plain = s
        .complete(&json!({"prompt": prompt, "max_tokens": 9, "temperature": 0, "add_special_tokens": false}));
    let message = &chat["choices"][0]["message"];
    assert_eq!((&message["role"], message["content"].as_str().unwrap()), (&json!("assistant"), text(&plain)));
    assert_eq!(chat["usage"]["prompt_tokens"], plain["usage"]["prompt_tokens"]);
    let content = chat["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 9);
    assert!(content.iter().all(|e| e["top_logprobs"].as_array().unwrap().len() == 3));
    // Greedy: the token is the likeliest.
    assert!(content.iter().all(|e| e["top_logprobs"][0]["token"] == e["token"] && e["bytes"].is_array()));
    body["stream"] = true.into();
    let events = s.events("/v1/chat/completions", &body);
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    let said: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, text(&plain));
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
    let none = start(json!({}), |o| o.chat_template = None);
    let (status, e) = none.post("/v1/chat/completions", &body);
    assert!(status == 400 && e["error"]["message"].as_str().unwrap().contains("--chat-template"), "{e}");
}

#[test]
fn the_model_and_its_tokenizer_introduce_themselves() {
    let s = start(json!({}), |_| {});
    let models: Value = serde_json::from_str(&s.get("/v1/models").1).unwrap();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("tiny")));
    assert_eq!(models["data"][0]["max_model_len"], 131_072);
    assert_eq!(s.get("/v1/models/tiny").0, 200);
    assert_eq!(s.get("/health"), (200, "{\"status\":\"ok\"}".into()));
    let (_, ids) = s.post("/tokenize", &json!({"prompt": "Grüße", "add_special_tokens": false}));
    assert_eq!((&ids["count"], ids["tokens"].as_array().unwrap().len()), (&json!(7), 7));
    let (_, back) = s.post("/detokenize", &json!({"tokens": ids["tokens"]}));
    assert_eq!(back["prompt"], "Grüße");
    let info: Value = serde_json::from_str(&s.get("/tokenizer_info").1).unwrap();
    let eos = tokenizer().inner().id_to_token(tokenizer().eos().unwrap()).unwrap();
    assert_eq!((&info["eos_token"], &info["chat_template"]), (&json!(eos), &json!(TEMPLATE)));
    // Text and ids of the same prompt are one.
    let by = |prompt: Value| text(&s.complete(&json!({"prompt": prompt, "temperature": 0}))).to_string();
    assert_eq!(by(json!("Grüße")), by(ids["tokens"].clone()));
}
